"""Benchmarks: how to make or read each, and the module that does it."""

READERS = {"avatars": "efface.data.benchmarks.mllmu"}
"""Benchmark name to the module whose `read_benchmark` turns its folder into rows."""
