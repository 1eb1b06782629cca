"""A benchmark's own table for every model, side by side, under the names its papers use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.evaluation.benchmarks import against_retrained, view_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PublishedRow:
    """One published number for every model: value and the rows it is the mean of; None where it has none."""

    label: str
    cells: Sequence[tuple[float, int] | None]


@dataclass(frozen=True)
class Published:
    """The table of a benchmark: a column per model."""

    benchmark: str
    models: Sequence[str]
    rows: Sequence[PublishedRow]


def published(tables: Mapping[str, pd.DataFrame], benchmark: str) -> Published | None:
    """The benchmark's own numbers, or None for one that publishes none.

    Args:
        tables: model to its score table, ``retrained`` among them.
        benchmark: name of the benchmark.
    """
    numbers_by_model: dict[str, dict[str, tuple[float, int]]] = {}
    for model, table in tables.items():
        view = view_of(table, benchmark)
        if view is None:
            return None
        numbers_by_model[model] = dict(_numbers(view))
        if "retrained" in tables:
            numbers_by_model[model] |= dict(
                _numbers(against_retrained(table, tables["retrained"], benchmark))
            )
    labels = list(dict.fromkeys(label for numbers in numbers_by_model.values() for label in numbers))
    rows = [
        PublishedRow(label, [numbers.get(label) for numbers in numbers_by_model.values()]) for label in labels
    ]
    return Published(benchmark, list(numbers_by_model), rows)


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
