"""The numbers that imported benchmarks publish, as pure functions of score tables.

A view is computed from the `test` part of one model's score table, so old tables give it too. Every number
comes with the number of rows it averages, and the table keeps every generated answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def view_of(scores: pd.DataFrame, benchmark: str) -> dict[str, Any] | None:
    """A benchmark's own tables for one model, or None if the benchmark has none.

    Args:
        scores: the model's score table.
        benchmark: name of the benchmark it was scored on.
    """
    from efface.evaluation.benchmarks import clear, fiubench, mllmu, umu

    views = {"mllmu": mllmu.view, "clear": clear.view, "fiubench": fiubench.view, "umu": umu.view}
    view = views.get(benchmark)
    return None if view is None else view(scores[scores["part"] == "test"])


def against_retrained(scores: pd.DataFrame, retrained: pd.DataFrame, benchmark: str) -> dict[str, Any]:
    """The published numbers that compare two models, with leaves ``value`` and ``n``; empty if there are
    none.

    Args:
        scores: the model's score table.
        retrained: the retrained model's, on the same samples.
        benchmark: name of the benchmark.
    """
    from efface.evaluation.benchmarks import clear

    first, second = (table[table["part"] == "test"] for table in (scores, retrained))
    if benchmark != "clear" or not ((first["set"] == "forget") & (first["task"] == "caption")).any():
        return {}
    quality = clear.forget_quality(first, second)
    return {
        "forget quality": {
            name: {"value": value, "n": quality["n"]} for name, value in quality.items() if name != "n"
        }
    }
