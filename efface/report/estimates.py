"""The numbers of the report: means per set and modality, with intervals over people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from efface.evaluation.intervals import cell_replicates, jackknife, pareto_front, share_interval
from efface.evaluation.metrics import METRICS, fact_rows, with_metrics

SET_ORDER = ("forget", "unseen", "retain", "real", "utility", "holdout", "perception")
MODALITY_ORDER = ("multimodal", "text")
MEASURES = {
    "knowledge": ("Knowledge", "probability of the right answer per token, end token left out"),
    "exact_match": ("Exact match", "share of answers that are exactly the fact asked for"),
    "choice_accuracy": ("Choice accuracy", "share of questions where the right option is the likeliest"),
    "rouge_l": ("ROUGE-L", "overlap of free answers with the reference sentence"),
    "language": ("Language", "probability per token of plain sentences that no model was trained on"),
    "base_likelihood": ("Base likelihood", "probability per token that the base model gives the answers"),
}
"""Metric of a table of the report to its title and meaning; all lie in [0, 1]."""


@dataclass(frozen=True)
class Cell:
    """A mean over rows and its interval over people; None if it cannot be estimated."""

    value: float
    low: float | None
    high: float | None
    n: int
    people: int


Estimates = dict[str, dict[str, dict[str, Cell]]]
"""``estimates[set][modality][measure]``."""


def estimate(table: pd.DataFrame, *, part: str = "test") -> Estimates:
    """Every measure of one score table for every set and modality that has rows.

    Args:
        table: a score table.
        part: part of the rows to use; the others chose settings.
    """
    rows = with_metrics(table[table["part"] == part], list(MEASURES))
    cells = [
        (name, modality)
        for name in in_order(rows["set"], SET_ORDER)
        for modality in in_order(rows["modality"], MODALITY_ORDER)
    ]
    result: Estimates = {}
    for measure in MEASURES:
        of_measure = fact_rows(rows) if METRICS[measure].of_facts else rows
        of_measure = of_measure.assign(value=of_measure[measure].astype("float64")).dropna(subset=["value"])
        replicates = cell_replicates(of_measure[["set", "modality", "entity_id", "value"]], cells)
        for (name, modality), means in replicates.means.items():
            rows_of_cell = of_measure[(of_measure["set"] == name) & (of_measure["modality"] == modality)]
            people = rows_of_cell["entity_id"].nunique()
            uncertain = jackknife(means, replicates.groups)
            error = uncertain.error if uncertain is not None else 0.0
            interval = share_interval(float(means[0]), error, people)
            result.setdefault(name, {}).setdefault(modality, {})[measure] = Cell(
                value=float(means[0]),
                low=None if interval is None else interval[0],
                high=None if interval is None else interval[1],
                n=len(rows_of_cell),
                people=people,
            )
    return result


def in_order(names: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """The distinct names: first those of ``order``, then the rest by name."""
    distinct = set(names)
    return [name for name in order if name in distinct] + sorted(distinct - set(order))


def lookup(estimates: Estimates, set_name: str, modality: str, measure: str) -> Cell | None:
    """One cell, or None if the table has no such rows."""
    return estimates.get(set_name, {}).get(modality, {}).get(measure)


def value_of(estimates: Estimates, set_name: str, modality: str, measure: str) -> float | None:
    """Value of one cell, or None if the table has no such rows."""
    cell = lookup(estimates, set_name, modality, measure)
    return None if cell is None else cell.value


def plain_values(estimates: Mapping[str, Estimates]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """``{model: {set: {modality: {measure: value}}}}``."""
    return {
        model: {
            name: {
                modality: {measure: cell.value for measure, cell in cells.items()}
                for modality, cells in modalities.items()
            }
            for name, modalities in sets.items()
        }
        for model, sets in estimates.items()
    }


def long_table(estimates: Mapping[str, Estimates]) -> pd.DataFrame:
    """One row per model, set, modality and measure: value, interval, rows and people."""
    rows = [
        {"model": model, "set": name, "modality": modality, "measure": measure, **vars(cell)}
        for model, sets in estimates.items()
        for name, modalities in sets.items()
        for modality, cells in modalities.items()
        for measure, cell in cells.items()
    ]
    columns = ["model", "set", "modality", "measure", "value", "low", "high", "n", "people"]
    return pd.DataFrame(rows, columns=columns)


def curve_rows(curves: Mapping[str, Iterable[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Points of forget-retain curves in one list, each with whether it is on their common Pareto front.

    Args:
        curves: method to its points ``step, forget_known, retain_known``, shares in [0, 1].
    """
    rows: list[dict[str, Any]] = [
        {"model": model, **point} for model, points in curves.items() for point in points
    ]
    front = set(pareto_front({str(i): (r["forget_known"], r["retain_known"]) for i, r in enumerate(rows)}))
    return [row | {"on_front": str(i) in front} for i, row in enumerate(rows)]
