"""The loop that all training shares, and what it is made of: gradients, precision, checkpoints, processes."""
