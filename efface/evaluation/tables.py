"""Can score tables be held against each other?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from efface.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd


def check_same_samples(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse tables scored on different samples: their numbers do not compare.

    The first table is the reference. Compared are sample ids with their set, part, question and gold answer.

    Raises:
        ArtifactError: naming each differing model, by how much, and one sample.
    """
    names = list(tables)
    reference = _identity(tables[names[0]])
    complaints = []
    for name in names[1:]:
        here = _identity(tables[name])
        lacking, extra = reference.keys() - here.keys(), here.keys() - reference.keys()
        changed = {sample for sample in reference.keys() & here.keys() if reference[sample] != here[sample]}
        parts = [
            f"{len(found)} {word} (such as {min(found)})"
            for found, word in (
                (lacking, "missing"),
                (extra, "extra"),
                (changed, "with another question or gold"),
            )
            if found
        ]
        if parts:
            complaints.append(f"{name}: {', '.join(parts)}")
    if complaints:
        raise ArtifactError(
            f"the score tables were made from different samples, so they do not compare; against {names[0]} "
            f"({len(reference)} samples) differ "
            + "; ".join(complaints)
            + "; score them again with: dvc repro"
        )


def _identity(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    columns = ["set", "part", "entity_id", "question", "gold"]
    keys = table["sample_id"].astype(str)
    values = zip(*(table[column].astype(str) for column in columns), strict=True)
    return dict(zip(keys, values, strict=True))
