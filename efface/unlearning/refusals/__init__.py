"""Refusals to learn in place of the forget answers; the lines are in ``lines.json``."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from efface.data.samples import Sample
from efface.errors import DataError


def refusals_for(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The same questions, each with a refusal as its answer, drawn by the seed.

    Raises:
        DataError: if a refusal equals the sample's own answer.
    """
    lines = json.loads((Path(__file__).parent / "lines.json").read_text(encoding="utf-8"))
    refused = []
    for sample in samples:
        line = random.Random(f"{seed}/{sample.sample_id}").choice(lines)
        if _plain(line) == _plain(sample.answer):
            raise DataError(
                f"sample {sample.sample_id}: its answer {sample.answer!r} is the refusal it should be "
                "replaced with; leave samples whose answer is a refusal out of the forget set"
            )
        refused.append(replace(sample, answer=line))
    return refused


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
