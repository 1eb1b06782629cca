"""For all tests."""

import gc


def pytest_collection() -> None:
    """Import tests and what they import without collecting garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections: a million objects, looked through again and again."""
    gc.freeze()
    gc.enable()
