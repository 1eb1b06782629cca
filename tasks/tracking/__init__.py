"""Results in MLflow: runs, artifacts and the model registry."""
