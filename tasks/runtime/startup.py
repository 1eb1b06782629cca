"""What a process leaves out when it starts: a run has some twenty of them, seconds each."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator

_MODEL = ("transformers.modeling_utils", "transformers.processing_utils", "transformers.models.auto")
_USED = {
    "base": _MODEL,
    "vanilla": _MODEL,
    "retrained": _MODEL,
    "saliency": _MODEL,
    "control": _MODEL,
    "importance": _MODEL,
    "unlearn": _MODEL,
    "prune": _MODEL,
    "evaluate": (*_MODEL, "pandas"),
    "attack": (*_MODEL, "pandas"),
    "report": ("pandas", "matplotlib.figure", "jinja2"),
    "tracking": ("mlflow.tracking", "mlflow.entities", "mlflow.data", "sqlalchemy.orm"),
}
"""Stage to what is large and is imported in any case, though perhaps in the middle of its work."""


@contextlib.contextmanager
def uncollected(*, freeze: bool = True) -> Iterator[None]:
    """Work in this block without collecting garbage.

    Of the million objects that torch, transformers or Prefect make when they are imported all stay; to look
    through them again and again is a quarter of the time that takes, and of the time of short work after it.

    Args:
        freeze: leave what there is at the end out of later collections as well: for imports.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if before:
            gc.enable()


def prepare(stage: str) -> None:
    """Import what a stage needs, in the process that runs nothing else."""
    if _MODEL[0] in _USED.get(stage, ()):
        _import_losses()
    for module in _USED.get(stage, ()):
        importlib.import_module(module)


def _import_losses() -> None:
    """Import transformers' losses without scipy, which only those of its object detectors use.

    They are imported with every model class, and scipy's optimizers with them: a tenth of all that a stage
    imports. Only the process of a stage may do so: a detector could not be trained in it any more.
    """
    if "transformers.loss" in sys.modules:
        return
    from transformers import utils

    there = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        import transformers.loss.loss_utils  # noqa: F401
    finally:
        utils.is_scipy_available = there
