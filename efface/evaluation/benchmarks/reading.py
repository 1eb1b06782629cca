"""How a view reads one answer, and how it averages many.

| reading | picks | its trap |
|---|---|---|
| ``accuracy_strict`` | the letter or the option the answer states | "It is not Lyon" reads as Lyon |
| ``accuracy_first_letter`` | the first character (MLLMU-Bench's code) | "A person" reads as A |
| ``accuracy_first_alphanumeric`` | the same without punctuation (MMUnlearner's code) | "Basil Mahfouz" is B |
| ``accuracy_likelihood`` | the likeliest option per token | the model may never say it |
| ``states_an_option`` | whether the strict reading sees any | low: a number of format, not knowledge |
| cloze ``accuracy_strict`` | the gold as whole words | |
| cloze ``accuracy_contains`` | the gold as a substring (MLLMU-Bench's code) | "art" in "heart" |
| ``bleu_nltk`` | nltk's sentence BLEU, smoothing 1 | a right answer of three words scores 0.56 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from efface.evaluation import parsers
from efface.evaluation.metrics import METRICS, Row, choice_read_by

if TYPE_CHECKING:
    import pandas as pd

Reading = Callable[[Row], float | None]
Cell = dict[str, float | int]
"""`value`, the mean over rows; `n`, how many rows."""


def rows_of(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, with lists for arrays and None for missing values."""
    return [
        {str(key): _plain(value) for key, value in row.items()} for row in scores.to_dict(orient="records")
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def states_an_option(row: Row) -> float:
    """Whether the answer states an option at all, right or wrong."""
    return float(parsers.strict_choice(row["generation"], row["options"]) is not None)


CHOICE: dict[str, Reading] = {
    "accuracy_strict": METRICS["choice_accuracy_generated"].value_of,
    "accuracy_first_letter": choice_read_by(parsers.first_letter_choice),
    "accuracy_first_alphanumeric": choice_read_by(parsers.first_alphanumeric_choice),
    "accuracy_likelihood": METRICS["choice_accuracy"].value_of,
    "states_an_option": states_an_option,
}
"""Readings of multiple choice."""

CLOZE: dict[str, Reading] = {
    "accuracy_strict": METRICS["cloze_accuracy"].value_of,
    "accuracy_contains": METRICS["cloze_accuracy_legacy"].value_of,
}
"""Readings of a filled blank."""

SENTENCE: dict[str, Reading] = {
    **{name: METRICS[name].value_of for name in ("rouge_l", "rouge_1", "rouge_2")},
    "bleu_nltk": lambda row: bleu_nltk(row["generation"], row["gold"]),
}
"""Readings of a sentence."""


def bleu_nltk(generation: str, gold: str) -> float:
    """BLEU as the published codes compute it, in [0, 1]: words split at blanks, orders 1 to 4, smoothing 1.

    Orders longer than the sentence count, so a right answer of three words scores 0.56.
    """
    if not generation.split():
        return 0.0
    score, smoothing = _nltk()
    return float(score([gold.split()], generation.split(), smoothing_function=smoothing))


@cache
def _nltk() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return sentence_bleu, SmoothingFunction().method1


def summed_up(rows: Iterable[Row], readings: Mapping[str, Reading]) -> dict[str, Cell]:
    """Mean of every reading over the rows that have one; a reading that no row has is left out."""
    rows = list(rows)
    cells: dict[str, Cell] = {}
    for name, reading in readings.items():
        values = sorted(value for value in map(reading, rows) if value is not None)
        if values:
            cells[name] = {"value": math.fsum(values) / len(values), "n": len(values)}
    return cells
