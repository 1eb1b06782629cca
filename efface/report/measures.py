"""The numbers of the report: shares per set and modality, with intervals over people.

A measure is one column of the score table averaged over the rows of some tasks. A new one is one more entry
in ``MEASURES``; tables, page, metrics file and tracking follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from efface.evaluation.people import forget_retain_curve

RESAMPLES = 1000
LEVEL = 0.95
SET_ORDER = ("forget", "unseen", "retain", "real", "utility", "holdout")
MODALITY_ORDER = ("multimodal", "text")


@dataclass(frozen=True)
class Measure:
    """One number per set and modality: the mean of ``column`` over the rows of ``tasks``, in [0, 1]."""

    name: str
    title: str
    column: str
    tasks: tuple[str, ...]
    meaning: str
    higher_is_better: bool = True
    """For an intact model; on the people to forget a visual goal asks for the opposite."""


MEASURES: tuple[Measure, ...] = (
    Measure(
        "exact_match",
        "Exact match",
        "exact_match",
        ("choice", "cloze", "qa", "name"),
        "share of answers that are exactly the fact asked for",
    ),
    Measure(
        "choice_accuracy",
        "Choice accuracy",
        "correct",
        ("choice",),
        "share of multiple-choice questions where the right option is the likeliest",
    ),
    Measure(
        "rouge_l",
        "ROUGE-L",
        "rouge_l",
        ("generation", "caption"),
        "overlap of free answers with the reference sentence, 0 to 1",
    ),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over rows and its interval over people (None with fewer than two people)."""

    value: float
    low: float | None
    high: float | None
    n: int
    people: int


Estimates = dict[str, dict[str, dict[str, Estimate]]]
"""``estimates[set][modality][measure]``."""


def _person_sums(values: np.ndarray, people: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values per person, people in sorted order, so row order changes nothing."""
    _, owner = np.unique(np.asarray(list(people), dtype=str), return_inverse=True)
    counts = np.bincount(owner).astype(float)
    order = np.lexsort((values, owner))  # floating sums do not depend on the order rows came in
    return np.bincount(owner[order], weights=values[order]), counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def people_interval(
    values: np.ndarray,
    people: Iterable[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean, drawing people with all their rows, not single rows.

    Answers about one person rise and fall together, so drawing rows would make intervals too narrow.

    Args:
        values: one number per row, finite.
        people: the person of each row, same length.
        resamples: draws of as many people as there are, with replacement.
        level: share of draws the interval covers, in (0, 1).
        seed: the same seed and number of people give the same draws, which pairs models with each other.

    Returns:
        Lower and upper bound, or None with fewer than two people: one person says nothing about others.
    """
    sums, counts = _person_sums(np.asarray(values, dtype=float), people)
    if len(sums) < 2:
        return None
    means = _resampled_means(sums, counts, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of mean(first) - mean(second), paired: both models answer for the same drawn people.

    Args:
        first: columns ``entity_id`` and ``value``, from :func:`rows_of`.
        second: the same rows answered by the other model.

    Returns:
        Lower and upper bound, or None with fewer than two people.

    Raises:
        ValueError: if the two do not hold the same number of rows for the same people.
    """
    sums_a, counts_a = _person_sums(first["value"].to_numpy(float), first["entity_id"])
    sums_b, counts_b = _person_sums(second["value"].to_numpy(float), second["entity_id"])
    if not np.array_equal(counts_a, counts_b):
        raise ValueError(
            f"a paired difference needs the same rows from both models, got {len(first)} and {len(second)} "
            f"rows about {len(counts_a)} and {len(counts_b)} people; evaluate both on the same samples"
        )
    if len(sums_a) < 2:
        return None
    differences = _resampled_means(sums_a, counts_a, resamples, seed) - _resampled_means(
        sums_b, counts_b, resamples, seed
    )
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rows_of(
    table: pd.DataFrame, *, set: str, modality: str, measure: str, part: str = "test"
) -> pd.DataFrame:
    """The rows one number is made of: columns ``entity_id``, ``sample_id`` and ``value`` (float)."""
    wanted = measure_named(measure)
    here = table[
        (table["part"] == part)
        & (table["set"] == set)
        & (table["modality"] == modality)
        & table["task"].isin(wanted.tasks)
    ]
    values = here[wanted.column].astype(float)
    chosen = here.loc[values.notna(), ["entity_id", "sample_id"]]
    return chosen.assign(value=values[values.notna()]).reset_index(drop=True)


def measure_named(name: str) -> Measure:
    """The measure called ``name``; an unknown name lists the known ones."""
    for measure in MEASURES:
        if measure.name == name:
            return measure
    raise ValueError(f"unknown measure {name!r}; known are {', '.join(m.name for m in MEASURES)}")


def estimate(
    table: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0, part: str = "test"
) -> Estimates:
    """Every measure of one score table for every set and modality it has rows for.

    Args:
        table: one row per scored sample, columns as written by ``efface.evaluation``.
        resamples: bootstrap draws of people for each interval.
        seed: seed of the draws.
        part: rows of this part only; the others chose hyper-parameters.
    """
    result: Estimates = {}
    for set_name in ordered(table["set"], SET_ORDER):
        for modality in ordered(table["modality"], MODALITY_ORDER):
            for measure in MEASURES:
                rows = rows_of(table, set=set_name, modality=modality, measure=measure.name, part=part)
                if rows.empty:
                    continue
                values = rows["value"].to_numpy(float)
                low, high = people_interval(values, rows["entity_id"], resamples=resamples, seed=seed) or (
                    None,
                    None,
                )
                cell = Estimate(float(values.mean()), low, high, len(rows), rows["entity_id"].nunique())
                result.setdefault(set_name, {}).setdefault(modality, {})[measure.name] = cell
    return result


def ordered(found: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """The distinct values found: known ones in ``order``, then others by name."""
    distinct = set(found)
    return [name for name in order if name in distinct] + sorted(distinct - set(order))


def lookup(estimates: Estimates, set_name: str, modality: str, measure: str) -> Estimate | None:
    """One cell, or None where the table has no such rows."""
    return estimates.get(set_name, {}).get(modality, {}).get(measure)


def plain_values(estimates: Mapping[str, Estimates]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """``{model: {set: {modality: {measure: value}}}}``, the nesting ``dvc metrics`` shows."""
    return {
        model: {
            set_name: {
                modality: {name: cell.value for name, cell in cells.items()}
                for modality, cells in modalities.items()
            }
            for set_name, modalities in sets.items()
        }
        for model, sets in estimates.items()
    }


def long_table(estimates: Mapping[str, Estimates]) -> pd.DataFrame:
    """One row per model, set, modality and measure: value, interval, rows and people."""
    rows = [
        {
            "model": model,
            "set": set_name,
            "modality": modality,
            "measure": name,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n": cell.n,
            "people": cell.people,
        }
        for model, sets in estimates.items()
        for set_name, modalities in sets.items()
        for modality, cells in modalities.items()
        for name, cell in cells.items()
    ]
    columns = ["model", "set", "modality", "measure", "value", "low", "high", "n", "people"]
    return pd.DataFrame(rows, columns=columns)


def curve_rows(curves: Mapping[str, Iterable[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Points of forget-retain curves in one list, each with whether it is on the Pareto front of them all.

    Args:
        curves: method to its points ``step, forget_known, retain_known``, shares in [0, 1].
    """
    rows: list[dict[str, Any]] = [
        {"model": model, **point} for model, points in curves.items() for point in points
    ]
    named = {str(i): (row["forget_known"], row["retain_known"]) for i, row in enumerate(rows)}
    fronts = [bool(point["on_front"]) for point in forget_retain_curve(named)]
    return [row | {"on_front": front} for row, front in zip(rows, fronts, strict=True)]
