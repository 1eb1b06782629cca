"""Hooks for all tests."""

import gc


def pytest_collection() -> None:
    """Import test modules without garbage collection."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude imported objects, a million of them, from later collections."""
    gc.freeze()
    gc.enable()
