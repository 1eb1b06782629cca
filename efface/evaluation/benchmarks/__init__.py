"""The numbers that imported benchmarks publish, as pure functions of score tables.

A view is made of one model's score table, of its `test` part alone, and can be made again from old tables.
Every number comes with the number of rows it is the mean of, and the table keeps every generated answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def view_of(scores: pd.DataFrame, benchmark: str) -> dict[str, Any] | None:
    """What a benchmark's own tables say about a model, or None where the benchmark has none.

    Args:
        scores: the model's score table.
        benchmark: name of the benchmark it was scored on.
    """
    from efface.evaluation.benchmarks import clear, mllmu

    view = {"mllmu": mllmu.view, "clear": clear.view}.get(benchmark)
    return None if view is None else view(scores[scores["part"] == "test"])


def against_retrained(scores: pd.DataFrame, retrained: pd.DataFrame, benchmark: str) -> dict[str, Any]:
    """The published numbers that take two models, leaves of ``value`` and ``n``; empty where there are none.

    Args:
        scores: the model's score table.
        retrained: that of the model which never saw the people to forget, on the same samples.
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
