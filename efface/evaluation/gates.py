"""Gates: conditions a new model must meet before it may replace the one in use.

Forgetting is checked for every request on its own, never on average. Retention is checked as a share of what
the vanilla model knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from efface.evaluation.metrics import with_metrics
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

METRIC = "exact_match"
FORGET_CELLS = {
    "seen": ("forget", "multimodal"),
    "unseen": ("unseen", "multimodal"),
    "by_name": ("forget", "text"),
}
"""Kinds of question about people to forget, each with its set and modality."""
RETAINED_SETS = {"retain": ("retain",), "utility": ("real", "utility")}
"""Gate to the sets it is measured on."""


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: `forget`, `retain`, `utility`, `other_facts`, `served`, `relearn_gap`, or a gate of `evidence`.
        about: the request it is about; None: the whole model.
        value: the measurement, in [0, 1] or a share of vanilla; None if there is none.
        limit: the bound.
        holds: `at most` or `at least`.
    """

    name: str
    about: str | None
    value: float | None
    limit: float
    holds: Literal["at most", "at least"]

    @property
    def passed(self) -> bool:
        """Whether the condition holds; without a measurement it does not."""
        if self.value is None:
            return False
        return self.value <= self.limit if self.holds == "at most" else self.value >= self.limit

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        of = f" of {self.about}" if self.about else ""
        if self.value is None:
            return f"{self.name}{of} could not be measured, expected {self.holds} {self.limit:g}"
        return f"{self.name}{of} {self.value:.3f}, expected {self.holds} {self.limit:g}"


def knowledge(table: pd.DataFrame, people: Collection[str]) -> dict[str, float | None]:
    """Exact match on questions about these people, in [0, 1]; None without such a question.

    Args:
        table: a score table.
        people: entity ids.

    Returns:
        `seen`: by pictures from training; `unseen`: by new pictures; `by_name`: without a picture.
    """
    rows = with_metrics(table[table["entity_id"].isin(list(people)) & (table["part"] == "test")], [METRIC])
    return {name: _mean(rows, *cell) for name, cell in FORGET_CELLS.items()}


def retained(table: pd.DataFrame, sets: Collection[str]) -> float | None:
    """Exact match on sets to retain, in [0, 1]: mean over modalities, then over sets.

    None if the sets have no such question.
    """
    rows = with_metrics(table[(table["part"] == "test") & table["set"].isin(list(sets))], [METRIC])
    by_set = []
    for name in sets:
        values = [value for m in ("multimodal", "text") if (value := _mean(rows, name, m)) is not None]
        if values:
            by_set.append(float(np.mean(values)))
    return float(np.mean(by_set)) if by_set else None


def share_retained(table: pd.DataFrame, vanilla: pd.DataFrame, sets: Collection[str]) -> float | None:
    """Exact match of a model divided by vanilla's, at least 0; above 1 if the model knows more.

    None if vanilla knows nothing, or there is no question.
    """
    after, before = retained(table, sets), retained(vanilla, sets)
    return None if after is None or not before else after / before


def gates(
    table: pd.DataFrame,
    vanilla: pd.DataFrame,
    groups: Mapping[str, Collection[str]],
    *,
    forget_at_most: float,
    retain_at_least: float,
    utility_at_least: float,
) -> list[Gate]:
    """The gates on a new model's answers, one about forgetting for each request.

    Args:
        table: score table of the new model.
        vanilla: score table of the model before any unlearning, on the same samples.
        groups: request to the entity ids of its people, for all requests so far.
        forget_at_most: exact match by picture; the higher of seen and unseen pictures counts.
        retain_at_least: share of vanilla's; 0: no such gate.
        utility_at_least: share of vanilla's; 0: no such gate.

    Raises:
        ArtifactError: if the two tables were made from different samples.
    """
    check_same_samples({"vanilla": vanilla, "the new model": table})
    result = []
    for request, people in groups.items():
        scores = knowledge(table, people)
        by_picture = [value for value in (scores["seen"], scores["unseen"]) if value is not None]
        result.append(Gate("forget", request, max(by_picture, default=None), forget_at_most, "at most"))
    for name, limit in (("retain", retain_at_least), ("utility", utility_at_least)):
        if limit:
            share = share_retained(table, vanilla, RETAINED_SETS[name])
            result.append(Gate(name, None, share, limit, "at least"))
    return result


def _mean(rows: pd.DataFrame, name: str, modality: str) -> float | None:
    values = rows.loc[(rows["set"] == name) & (rows["modality"] == modality), METRIC].dropna().sort_values()
    return float(values.mean()) if len(values) else None
