"""The questions of the forget-retain curve, which `unlearn.curve` asks while a method unlearns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efface.data.samples import read_samples
from efface.errors import DataError
from tasks.config import Params

if TYPE_CHECKING:
    from efface.models import LoadedModel
    from efface.unlearning.training.evaluation import EvaluationCallback

FREE_TEXT = ("generation", "caption")
"""Tasks with long answers, which no model reproduces word for word."""


def curve_evaluation(params: Params, loaded: LoadedModel, table: Path) -> EvaluationCallback | None:
    """Measures the forget-retain curve on drawn questions with short answers, which are right or wrong."""
    from efface.encoding import Encoder, draw
    from efface.unlearning.training.evaluation import EvaluationCallback

    curve = params.unlearn.curve
    if curve is None:
        return None
    sides = {}
    for side in ("forget", "retain"):
        questions = read_samples(table, set=side, part="test", modality="multimodal")
        questions = [sample for sample in questions if sample.task not in FREE_TEXT] or questions
        if not questions:
            raise DataError(
                f"unlearn.curve is set, but {table} has no test questions with pictures about the {side} "
                "people: set it to null"
            )
        indices = draw(len(questions), curve.questions, params.seed)
        sides[side] = Encoder(loaded.processor, [questions[i] for i in indices])
    return EvaluationCallback(curve.every, sides, params.unlearn.batch_size)
