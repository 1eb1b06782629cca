"""One score that rewards neither knowing everything nor knowing nothing.

With u the model, b base (never met the people), v vanilla, g retrained if there is one, else b, and c the
level of chance (1 / options for multiple choice, else 0), for each modality and set:

    left    = (u - g) / (v - g)                             clipped to [-1, 1]
    forget  = 1 - |left|                                    by picture, seen and unseen
    text    = goal "visual": clip((u - b) / (v - b), 0, 1)  goal "full": 1 - |left|, both by name
    retain  = clip((u - b) / (v - b), 0, 1)                 by picture and by name
    utility = clip((u - c) / (v - c), 0, 1)                 real people and general skills

A part is the minimum over its modalities and sets, and the score 100 times the harmonic mean of the parts.
Forgetting is two-sided: knowing less than the retrained model is a trace too. The measure is ``knowledge``,
the probability of the fact, or ``exact_match``. Floors are the base model's, so repeating a sentence's frame
earns nothing. The score is always shown with its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from efface.errors import EvaluationError
from efface.evaluation import LEARNT
from efface.evaluation.intervals import (
    Cell,
    Estimate,
    Replicates,
    cell_replicates,
    jackknife,
    share_interval,
)
from efface.evaluation.metrics import chance, fact_rows, with_metrics
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

Goal = Literal["visual", "full"]
GOALS: tuple[Goal, ...] = ("visual", "full")
Measure = Literal["knowledge", "exact_match"]
MEASURES: tuple[Measure, ...] = ("knowledge", "exact_match")
"""The measure of the score, and the one it is checked against."""
PARTS = ("forget", "text", "retain", "utility")
CELLS: dict[str, tuple[Cell, ...]] = {
    "forget": (("forget", "multimodal"), ("unseen", "multimodal")),
    "text": (("forget", "text"), ("unseen", "text")),
    "retain": (("retain", "multimodal"), ("retain", "text")),
    "utility": (("real", "multimodal"), ("real", "text"), ("utility", "multimodal"), ("utility", "text")),
}
"""Part to the sets and modalities whose minimum it is, as far as the table has them."""


@dataclass(frozen=True)
class Score:
    """A score and its parts.

    Attributes:
        goal: ``visual`` or ``full``.
        measure: ``knowledge`` or ``exact_match``.
        value: in [0, 100].
        forget, text, retain, utility: the four parts, in [0, 1].
        low, high: interval of the value over people, within [0, 100]; None where it cannot be estimated.
        unmeasured: sets of ``utility`` left out because vanilla itself is no better than chance there.
    """

    goal: Goal
    measure: Measure
    value: float
    forget: float
    text: float
    retain: float
    utility: float
    low: float | None = None
    high: float | None = None
    unmeasured: tuple[str, ...] = ()


def unlearning_score(
    table: pd.DataFrame,
    *,
    base: pd.DataFrame,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame | None,
    goal: Goal,
    measure: Measure = "knowledge",
) -> Score:
    """The score of a model against the reference models.

    Args:
        table: score table of the model.
        base: score table of the model that never met the people to forget or to retain, on the same samples.
        vanilla: score table of the model that unlearning starts from.
        retrained: score table of the model trained on everyone except the people to forget; None uses base.
        goal: ``visual`` keeps the facts reachable by name, ``full`` wants them gone.
        measure: ``knowledge`` or ``exact_match``, on test questions that ask for a fact.

    Raises:
        EvaluationError: if vanilla leads by less than `LEARNT` on a set, or a part has no rows.
        ArtifactError: if the tables were made from different samples.
    """
    means, groups = _means(table, base, vanilla, retrained, measure)
    return score_of_means(means, groups, goal=goal, measure=measure)


def score_of_means(
    means: Mapping[str, Mapping[Cell, np.ndarray]], groups: np.ndarray, *, goal: Goal, measure: Measure
) -> Score:
    """The score from the means of each model with everyone and without each person.

    Args:
        means: the means of `Replicates` for ``model``, ``vanilla``, ``base``, ``chance`` and, if there is
            one, ``retrained``.
        groups: group of each person.
        goal, measure: as for `unlearning_score`.

    Raises:
        EvaluationError: as for `unlearning_score`.
    """
    parts, unmeasured = _parts(means, goal, measure)
    replicates = _combined(parts)
    estimate = jackknife(replicates, groups)
    interval = None
    if estimate is not None:
        # With few people the degrees of freedom are as uncertain as the error: at most the smallest set's.
        units = min(estimate.freedom + 1, np.unique(groups, return_counts=True)[1].min())
        interval = share_interval(estimate.value / 100, estimate.error / 100, units)
    return Score(
        goal=goal,
        measure=measure,
        value=float(replicates[0]),
        low=None if interval is None else 100 * interval[0],
        high=None if interval is None else 100 * interval[1],
        unmeasured=unmeasured,
        **{name: float(values[0]) for name, values in parts.items()},
    )


def score_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    base: pd.DataFrame,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame | None,
    goal: Goal,
    measure: Measure = "knowledge",
) -> tuple[float, Estimate | None]:
    """How much higher the first model scores, as a number and with its paired uncertainty over people."""
    scores = []
    for table in (first, second):
        means, groups = _means(table, base, vanilla, retrained, measure)
        scores.append(_combined(_parts(means, goal, measure)[0]))
    difference = scores[0] - scores[1]
    return float(difference[0]), jackknife(difference, groups)


def _means(
    table: pd.DataFrame,
    base: pd.DataFrame,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame | None,
    measure: Measure,
) -> tuple[dict[str, Mapping[Cell, np.ndarray]], np.ndarray]:
    """Means of the cells of the score, by model, and the groups of the people."""
    if measure not in MEASURES:
        raise EvaluationError(f"measure is {measure!r}: expected one of {', '.join(MEASURES)}")
    tables = {"vanilla": vanilla, "base": base, "model": table}
    if retrained is not None:
        tables["retrained"] = retrained
    check_same_samples(tables)
    replicates = {name: _replicates(rows, measure) for name, rows in tables.items()}
    replicates["chance"] = _replicates(vanilla, "chance")
    return {name: values.means for name, values in replicates.items()}, replicates["vanilla"].groups


def _parts(
    means: Mapping[str, Mapping[Cell, np.ndarray]], goal: Goal, measure: Measure
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Each part with everyone (entry 0) and without each person, and the sets left out."""
    if goal not in GOALS:
        raise EvaluationError(f"goal is {goal!r}: expected one of {', '.join(GOALS)}")
    u, v, b, c = (means[name] for name in ("model", "vanilla", "base", "chance"))
    floor = "retrained" if "retrained" in means else "base"
    g = means[floor]
    parts, unmeasured = {}, []
    for name in PARTS:
        present = [cell for cell in CELLS[name] if cell in v]
        if not present or (name in ("forget", "text") and CELLS[name][0] not in v):
            raise EvaluationError(
                f"the part {name!r} of the score is not available: the score tables hold no value of "
                f"{measure} for {'/'.join(CELLS[name][0])}; score samples of that kind"
            )
        scores = []
        for cell in present:
            if name == "forget" or (name == "text" and goal == "full"):
                _check_lead(cell, measure, v, b, "base")
                _check_lead(cell, measure, v, g, floor)
                scores.append(1 - np.abs(_share(u[cell] - g[cell], v[cell] - g[cell], low=-1.0)))
            elif name in ("text", "retain"):
                _check_lead(cell, measure, v, b, "base")
                scores.append(_share(u[cell] - b[cell], v[cell] - b[cell], low=0.0))
            elif v[cell][0] - c[cell][0] < LEARNT:
                unmeasured.append("/".join(cell))
            else:
                scores.append(_share(u[cell] - c[cell], v[cell] - c[cell], low=0.0))
        if not scores:
            raise EvaluationError(
                f"no score: vanilla is no better than chance by {measure} on {', '.join(unmeasured)}, so "
                "there is no utility to retain: train it longer or score other skills"
            )
        parts[name] = np.min(scores, axis=0)
    return parts, tuple(unmeasured)


def _replicates(table: pd.DataFrame, measure: str) -> Replicates:
    rows = fact_rows(table[table["part"] == "test"])
    values = chance(rows) if measure == "chance" else with_metrics(rows, [measure])[measure]
    cells = [cell for part in CELLS.values() for cell in part]
    return cell_replicates(rows.assign(value=values.astype("float64")), cells)


def _check_lead(
    cell: Cell, measure: str, vanilla: Mapping[Cell, np.ndarray], floors: Mapping[Cell, np.ndarray], name: str
) -> None:
    v, floor = float(vanilla[cell][0]), float(floors[cell][0])
    if v - floor < LEARNT:
        raise EvaluationError(
            f"no score: on {'/'.join(cell)} vanilla has {v:.3f} by {measure} and {name} {floor:.3f}; vanilla "
            f"must lead by {LEARNT} or more, else there is nothing to forget or retain: train it longer"
        )


def _share(over: np.ndarray, under: np.ndarray, *, low: float) -> np.ndarray:
    """The ratio clipped to [low, 1]; if vanilla does not lead, 1 (all left) for low -1 and 0 for low 0."""
    safe = np.where(under > 0, under, 1.0)
    ratio = np.where(under > 0, np.clip(over / safe, low, 1.0), 1.0 if low < 0 else 0.0)
    return np.where(np.isnan(under), np.nan, ratio)


def _combined(parts: dict[str, np.ndarray]) -> np.ndarray:
    """100 times the harmonic mean of the parts, entry by entry."""
    stacked = np.stack(list(parts.values()))
    smallest = stacked.min(axis=0)
    means = 100 / np.mean(1 / np.where(smallest > 0, stacked, 1.0), axis=0)
    return np.where(np.isnan(smallest), np.nan, np.where(smallest > 0, means, 0.0))
