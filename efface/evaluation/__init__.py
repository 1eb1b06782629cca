"""Scoring a model sample by sample, and metrics of score tables.

``score`` is imported on first use, so that work on tables alone needs no torch.
"""

from importlib import import_module
from typing import Any

__all__ = ["LEARNT", "LEVEL", "MANY_PEOPLE", "REFERENCE_MODELS", "score"]

REFERENCE_MODELS = ("base", "vanilla", "retrained")
"""Models every unlearned model is compared with."""
LEVEL = 0.95
"""Confidence level of every interval."""
LEARNT = 0.05
"""Smallest lead of vanilla on a set, in [0, 1], for which a change on it can be measured."""
MANY_PEOPLE = 20
"""With fewer people to forget, one run ranks no methods."""


def __getattr__(name: str) -> Any:
    if name == "score":
        return import_module("efface.evaluation.scoring").score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
