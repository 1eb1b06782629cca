"""Checks that score tables were made from the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from efface.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd


def check_same_samples(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse tables scored on different samples, whose numbers cannot be compared.

    The first table is the reference. Sample ids, sets, parts, questions and gold answers are compared.

    Raises:
        ArtifactError: naming each differing model, by how much, and one sample.
    """
    names = list(tables)
    reference = _identity(tables[names[0]])
    complaints = []
    for name in names[1:]:
        identity = _identity(tables[name])
        common = reference.keys() & identity.keys()
        differences = {
            "missing": reference.keys() - identity.keys(),
            "extra": identity.keys() - reference.keys(),
            "with another question or gold": {s for s in common if reference[s] != identity[s]},
        }
        parts = [f"{len(ids)} {word} (such as {min(ids)})" for word, ids in differences.items() if ids]
        if parts:
            complaints.append(f"{name}: {', '.join(parts)}")
    if complaints:
        raise ArtifactError(
            f"the score tables were made from different samples and cannot be compared; against {names[0]} "
            f"({len(reference)} samples) differ "
            + "; ".join(complaints)
            + "; score all models on the same samples"
        )


def _identity(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    columns = ["set", "part", "entity_id", "question", "gold"]
    keys = table["sample_id"].astype(str)
    values = zip(*(table[column].astype(str) for column in columns), strict=True)
    return dict(zip(keys, values, strict=True))
