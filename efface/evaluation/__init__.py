"""Scoring a model sample by sample, and metrics made of the scores.

``efface.evaluation.score`` is that of :mod:`efface.evaluation.scoring`, imported when first asked for:
whoever works on tables alone needs no torch.
"""

from importlib import import_module
from typing import Any

__all__ = ["score"]


def __getattr__(name: str) -> Any:
    if name == "score":
        return import_module("efface.evaluation.scoring").score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
