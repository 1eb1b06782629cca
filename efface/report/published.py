"""A benchmark's own table for every model, side by side, under the names its papers use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.evaluation import LEARNT
from efface.evaluation.benchmarks import against_retrained, view_of
from efface.evaluation.intervals import Cell
from efface.evaluation.metrics import with_metrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PublishedRow:
    """One published number for every model: value and number of rows averaged; None if it has none."""

    label: str
    cells: Sequence[tuple[float, int] | None]


@dataclass(frozen=True)
class Published:
    """The table of a benchmark: a column per model.

    Attributes:
        benchmark: its name.
        models: the columns.
        rows: the numbers.
        refused: why numbers are left out: what vanilla never learnt can be neither forgotten nor retained.
    """

    benchmark: str
    models: Sequence[str]
    rows: Sequence[PublishedRow]
    refused: Sequence[str] = ()


def published(tables: Mapping[str, pd.DataFrame], benchmark: str) -> Published | None:
    """The benchmark's own numbers, or None for one that publishes none.

    Args:
        tables: model to its score table, including the reference models.
        benchmark: name of the benchmark.
    """
    if view_of(tables["vanilla"], benchmark) is None:
        return None
    refused = _never_learnt(tables["base"], tables["vanilla"])
    tables = {
        model: table[[cell not in refused for cell in zip(table["set"], table["modality"], strict=True)]]
        for model, table in tables.items()
    }
    numbers_by_model: dict[str, dict[str, tuple[float, int]]] = {}
    for model, table in tables.items():
        view = view_of(table, benchmark) or {}
        numbers = against_retrained(table, tables["retrained"], benchmark)
        numbers_by_model[model] = dict(_numbers(view)) | dict(_numbers(numbers))
    labels = list(dict.fromkeys(label for numbers in numbers_by_model.values() for label in numbers))
    rows = [
        PublishedRow(label, [numbers.get(label) for numbers in numbers_by_model.values()]) for label in labels
    ]
    return Published(benchmark, list(numbers_by_model), rows, list(refused.values()))


def _never_learnt(base: pd.DataFrame, vanilla: pd.DataFrame) -> dict[Cell, str]:
    """Set and modality that vanilla was taught but shows in no task, each with the reason."""
    learnt, floors = _knowledge(vanilla), _knowledge(base)
    leads: dict[Cell, list[tuple[float, str]]] = {}
    for (name, modality, task), value in learnt.items():
        leads.setdefault((name, modality), []).append((value - floors[name, modality, task], task))
    reasons = {}
    for (name, modality), tasks in leads.items():
        lead, task = max(tasks)
        if lead < LEARNT:
            reasons[name, modality] = (
                f"{name} / {modality}: no published number, because vanilla never learnt this: in its best "
                f"task, {task}, it gives the right answer {learnt[name, modality, task]:.3f} per token, base "
                f"{floors[name, modality, task]:.3f}; it must lead by {LEARNT} or more: train it longer"
            )
    return reasons


def _knowledge(table: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Mean knowledge by set, modality and task, of people whom vanilla was taught."""
    rows = table[(table["part"] == "test") & table["set"].isin(["forget", "unseen", "retain"])]
    rows = with_metrics(rows, ["knowledge"]).dropna(subset=["knowledge"])
    return {
        (str(name), str(modality), str(task)): float(group["knowledge"].mean())
        for (name, modality, task), group in rows.groupby(["set", "modality", "task"])
    }


def _numbers(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[float, int]]]:
    """Label and number of every leaf ``{"value", "n"}``."""
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            continue
        path = above if key in ("tables", "tasks") and not above else (*above, key)
        if "value" in value and "n" in value:
            yield " · ".join(path), (float(value["value"]), int(value["n"]))
        else:
            yield from _numbers(value, path)
