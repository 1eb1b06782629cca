"""Many runs of the pipeline side by side, and their comparison."""
