"""The loop that all training shares: its configuration, batches, references, checkpoints and evaluation."""
