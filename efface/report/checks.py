"""Checks that score tables may be compared."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from efface.errors import ArtifactError
from efface.evaluation import REFERENCE_MODELS

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
    "token_logprobs",
    "exact_match",
    "rouge_l",
)
"""The columns the report reads; a table may hold more."""


def check_reference_models(models: Sequence[str]) -> None:
    """Refuse a comparison without the reference models.

    Raises:
        ArtifactError: naming the missing ones.
    """
    missing = [name for name in REFERENCE_MODELS if name not in models]
    if missing:
        raise ArtifactError(
            f"models are {', '.join(models) or 'none'}: expected {', '.join(REFERENCE_MODELS)} among them, "
            f"missing {', '.join(missing)}; score these models as well"
        )


def check_table(model: str, table: pd.DataFrame) -> None:
    """Refuse a table that is empty, lacks columns, repeats a sample or belongs to another model.

    Raises:
        ArtifactError: naming the model and what is wrong.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    problem = None
    if missing:
        problem = f"has no columns {', '.join(missing)}"
    elif table.empty:
        problem = "has no rows"
    elif (names := sorted(set(table["model"].astype(str)))) != [model]:
        problem = f"holds rows of {', '.join(names)}"
    elif not table["sample_id"].is_unique:
        problem = f"holds sample {table.loc[table['sample_id'].duplicated(), 'sample_id'].iloc[0]} twice"
    if problem:
        raise ArtifactError(f"the score table of {model} {problem}; score the model again")
