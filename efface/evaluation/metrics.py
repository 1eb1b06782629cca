"""Metrics: pure functions of score tables, each with its range and direction.

A metric reads one row of a score table (a sample) and gives that row's value, or None where the row has
nothing to say about it; the metric of a set is the mean over the rows that have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FACT_TASKS = ("choice", "cloze", "qa", "name")
_NOT_WORD = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        name: as in tables and in MLflow.
        value_of: value of one row of a score table, or None.
        low: least possible value.
        high: greatest possible value.
        higher_is_better: direction on people who are kept; on forgotten people it turns round.
        description: one sentence for tables and reports.
    """

    name: str
    value_of: Callable[[Mapping[str, Any]], float | None]
    description: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True


def normalise(text: str) -> str:
    """Lower case, punctuation gone, single spaces: the form in which facts are compared."""
    return " ".join(_NOT_WORD.sub(" ", text.lower()).split())


def exact_match(generation: str, gold: str) -> float:
    """1.0 if the normalised generation is the normalised gold, else 0.0."""
    return float(normalise(generation) == normalise(gold))


def rouge_l(generation: str, gold: str) -> float:
    """ROUGE-L F-measure with stemming, in [0, 1]; an empty generation scores 0. Computed by the rouge-score
    package."""
    return float(_rouge().score(gold, generation)["rougeL"].fmeasure)


def choice(option_logprobs: Sequence[float]) -> int:
    """Index of the option with the highest log-probability per token; the first one on ties.

    Raises:
        ValueError: if there is no option, or a log-probability is not a number.
    """
    values = list(option_logprobs)
    if not values or any(math.isnan(value) for value in values):
        raise ValueError(f"expected log-probabilities of one or more options, got {values}")
    return max(range(len(values)), key=values.__getitem__)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "exact_match",
            lambda row: exact_match(row["generation"], row["gold"]) if row["task"] in FACT_TASKS else None,
            "share of questions about one fact whose generated answer is that fact",
        ),
        Metric(
            "choice_accuracy",
            lambda row: float(row["correct"]) if row["task"] == "choice" else None,
            "share of multiple-choice questions whose likeliest option per token is the right one",
        ),
        Metric(
            "rouge_l",
            lambda row: rouge_l(row["generation"], row["gold"]) if row["task"] == "generation" else None,
            "ROUGE-L F-measure of generated sentences",
        ),
    )
}


def summarise(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Mean of every metric by set and modality.

    Args:
        scores: a score table with one column per metric, empty where the metric does not apply.

    Returns:
        set -> modality -> metric -> ``{"value", "n"}``; combinations without rows are left out.
    """
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for (name, modality), rows in scores.groupby(["set", "modality"], sort=True):
        metrics = result.setdefault(str(name), {}).setdefault(str(modality), {})
        for metric in METRICS:
            values = rows[metric].dropna()
            if len(values):
                metrics[metric] = {"value": float(values.mean()), "n": len(values)}
    return result


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
