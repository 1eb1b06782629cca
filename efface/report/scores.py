"""Checks that score tables can stand beside each other in one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

import pandas as pd

from efface.errors import ArtifactError
from efface.evaluation.tables import check_same_samples
from efface.report.measures import MEASURES, Estimates, lookup

__all__ = ["COLUMNS", "YARDSTICKS", "check_same_samples", "check_summary", "check_table", "check_yardsticks"]

YARDSTICKS = ("base", "vanilla", "retrained")
COLUMNS = (
    "model",
    "benchmark",
    "set",
    "part",
    "modality",
    "task",
    "attribute",
    "entity_id",
    "sample_id",
    "pair_id",
    "question",
    "gold",
    "generation",
    "correct",
    "exact_match",
    "rouge_l",
)
"""The columns the report reads; a table may hold more."""


def check_yardsticks(models: Sequence[str]) -> None:
    """Refuse a comparison without its yardsticks: a method's number alone says nothing.

    Raises:
        ArtifactError: naming the missing ones.
    """
    missing = [name for name in YARDSTICKS if name not in models]
    if missing:
        raise ArtifactError(
            f"the report needs score tables of {', '.join(YARDSTICKS)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not among the models ({', '.join(models) or 'none'}); "
            "add to evaluate.models in params.yaml, then run: dvc repro"
        )


def check_table(model: str, table: pd.DataFrame) -> None:
    """Refuse a table that is empty, lacks columns, repeats a sample or belongs to another model.

    Raises:
        ArtifactError: naming the model, what was expected and what came.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ArtifactError(
            f"the score table of {model} lacks the columns {', '.join(missing)}; {_again(model)}"
        )
    if table.empty:
        raise ArtifactError(f"the score table of {model} has no rows; {_again(model)}")
    named = sorted(set(table["model"].astype(str)))
    if named != [model]:
        raise ArtifactError(f"the score table of {model} holds rows of {', '.join(named)}; {_again(model)}")
    if not table["sample_id"].is_unique:
        double = table.loc[table["sample_id"].duplicated(), "sample_id"].iloc[0]
        raise ArtifactError(
            f"the score table of {model} holds sample {double} more than once; {_again(model)}"
        )


def check_summary(model: str, table: pd.DataFrame, summary: Mapping[str, Any], estimates: Estimates) -> None:
    """Refuse a table and a summary file of two different evaluations.

    Raises:
        ArtifactError: naming the first number that differs.
    """
    if summary.get("model") != model:
        raise ArtifactError(f"the score summary of {model} is of {summary.get('model')!r}; {_again(model)}")
    if summary.get("rows") != len(table):
        raise ArtifactError(
            f"the score summary of {model} counts {summary.get('rows')} rows, its table has {len(table)}; "
            f"{_again(model)}"
        )
    for set_name, modalities in summary.get("metrics", {}).items():
        for modality, metrics in modalities.items():
            for measure in MEASURES:
                told = metrics.get(measure.name)
                found = lookup(estimates, set_name, modality, measure.name)
                if told is None:
                    continue
                if found is None or not isclose(told["value"], found.value, abs_tol=1e-9):
                    raise ArtifactError(
                        f"the score summary of {model} says {set_name}/{modality}/{measure.name} = "
                        f"{told['value']}, its table gives {found.value if found else 'no such rows'}; "
                        f"{_again(model)}"
                    )


def _again(model: str) -> str:
    return f"remove data/scores/{model}.* and score it again with: dvc repro"
