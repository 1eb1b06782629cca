"""Gates: what a new model must hold before it may take the place of the one in use.

Forgetting is asked of every person or group apart, never on average over them: that others were forgotten is
no comfort to the one who was not. Keeping is asked as a share of what the vanilla model knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from efface.evaluation.metrics import with_metrics
from efface.evaluation.people import cell_means
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

METRIC = "exact_match"
KNOWN = {"seen": ("forget", "multimodal"), "unseen": ("unseen", "multimodal"), "by_name": ("forget", "text")}
"""What is asked about somebody to forget: set and modality."""
KEPT = {"retain": ("retain",), "utility": ("real", "utility")}
"""What is to be kept: the sets it is asked on."""


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: `forget`, `retain`, `utility` or `relearn_gap`.
        about: the request it is asked for; None: it is about the whole model.
        value: what was measured, in [0, 1] or a share of vanilla; None where nothing could be.
        limit: what it is held against.
        holds: `at most` or `at least`.
    """

    name: str
    about: str | None
    value: float | None
    limit: float
    holds: Literal["at most", "at least"]

    @property
    def passed(self) -> bool:
        """Whether it holds; what could not be measured does not."""
        if self.value is None:
            return False
        return self.value <= self.limit if self.holds == "at most" else self.value >= self.limit

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        of = f" of {self.about}" if self.about else ""
        if self.value is None:
            return f"{self.name}{of} could not be measured, expected {self.holds} {self.limit:g}"
        return f"{self.name}{of} {self.value:.3f}, expected {self.holds} {self.limit:g}"


def knowledge(table: pd.DataFrame, people: Collection[str]) -> dict[str, float | None]:
    """Exact match on questions about these people, in [0, 1]; None where there is no such question.

    Args:
        table: a score table.
        people: entity ids.

    Returns:
        `seen`: by pictures from training; `unseen`: by other pictures; `by_name`: without a picture.
    """
    rows = with_metrics(table[table["entity_id"].isin(list(people)) & (table["part"] == "test")], [METRIC])
    found: dict[str, float | None] = {}
    for name, (kind, modality) in KNOWN.items():
        values = rows.loc[(rows["set"] == kind) & (rows["modality"] == modality), METRIC].dropna()
        found[name] = float(values.mean()) if len(values) else None
    return found


def kept(table: pd.DataFrame, sets: Collection[str]) -> float | None:
    """Exact match on people or skills that are to stay, in [0, 1]: mean over modalities, then over sets.

    None where the sets have no such question.
    """
    cells = [(kind, modality, METRIC) for kind in sets for modality in ("multimodal", "text")]
    means = cell_means(table[table["part"] == "test"], cells, resamples=0)
    by_set = [[float(means[cell][0]) for cell in cells if cell[0] == kind and cell in means] for kind in sets]
    return float(np.mean([np.mean(values) for values in by_set if values])) if any(by_set) else None


def share_kept(table: pd.DataFrame, vanilla: pd.DataFrame, sets: Collection[str]) -> float | None:
    """What a model still knows as a share of what vanilla knows, at least 0; above 1 where it knows more.

    None where vanilla knows nothing, or nothing is asked.
    """
    now, then = kept(table, sets), kept(vanilla, sets)
    return None if now is None or not then else now / then


def gates(
    table: pd.DataFrame,
    vanilla: pd.DataFrame,
    groups: Mapping[str, Collection[str]],
    *,
    forget_at_most: float,
    retain_at_least: float,
    utility_at_least: float,
) -> list[Gate]:
    """Every condition on a new model, one about forgetting for each request.

    Args:
        table: the new model's scores.
        vanilla: those of the model that had forgotten nobody, on the same samples.
        groups: request to the entity ids of its people, all requests so far.
        forget_at_most: exact match by picture; the higher of pictures seen and unseen counts.
        retain_at_least: share of vanilla; 0: not asked.
        utility_at_least: share of vanilla; 0: not asked.

    Raises:
        ArtifactError: if the two tables were made from different samples.
    """
    check_same_samples({"vanilla": vanilla, "the new model": table})
    found = []
    for request, people in groups.items():
        known = knowledge(table, people)
        pictured = [value for value in (known["seen"], known["unseen"]) if value is not None]
        highest = max(pictured, default=None)
        found.append(Gate("forget", request, highest, forget_at_most, "at most"))
    for name, limit in (("retain", retain_at_least), ("utility", utility_at_least)):
        if limit:
            found.append(Gate(name, None, share_kept(table, vanilla, KEPT[name]), limit, "at least"))
    return found
