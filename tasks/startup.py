"""What the process of a stage leaves out when it starts: a run has some twenty of them, seconds each."""

from __future__ import annotations

import sys

WITH_MODEL = (
    "base",
    "vanilla",
    "retrained",
    "saliency",
    "control",
    "importance",
    "unlearn",
    "prune",
    "evaluate",
    "attack",
)
"""Stages that import transformers' models."""


def prepare(stage: str) -> None:
    """Import transformers' losses without scipy, which only those of its object detectors use.

    They are imported with every model class, and scipy's optimizers with them: a tenth of all that a stage
    imports. Only the process of a stage may do so: a detector could not be trained in it any more.
    """
    if stage not in WITH_MODEL or "transformers.loss" in sys.modules:
        return
    from transformers import utils

    there = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        import transformers.loss.loss_utils  # noqa: F401
    finally:
        utils.is_scipy_available = there
