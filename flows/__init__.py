"""Orchestration: the stages of dvc.yaml as cached Prefect tasks."""
