"""Is it gone, or hidden? Ways to bring back what a model was made to forget."""
