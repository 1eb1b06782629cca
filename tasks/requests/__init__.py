"""Forget requests: request files, the plan of a run, its result in the registry, and certificates."""
