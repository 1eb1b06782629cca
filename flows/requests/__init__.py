"""Requests to be forgotten: the commands (python -m flows.requests) and the flow behind `run`."""
