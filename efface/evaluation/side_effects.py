"""Side effects of unlearning, from score tables alone.

Means hide that people similar to those to forget may be lost, that one person to forget may be left, or known
less than to a model that never met them, and that the other content of their pictures may be lost too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.data.names import name_key
from efface.evaluation import LEARNT
from efface.evaluation.evidence import NEIGHBOURS, nearest, neighbours
from efface.evaluation.intervals import cell_replicates, jackknife
from efface.evaluation.metrics import chance, fact_rows, with_metrics
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

_SIDE = 8
"""Width and height of a thumbnail, in cells."""


@dataclass(frozen=True)
class Kept:
    """Knowledge between a floor (0) and vanilla (1); the interval is over people."""

    value: float
    low: float | None
    high: float | None
    people: int


@dataclass(frozen=True)
class SideEffects:
    """Side effects of one model, by knowledge of facts asked by picture; None if not measurable.

    Attributes:
        kept: knowledge between base and vanilla about the retain people most like those to forget, by
            ``picture``, ``name`` or ``facts``, and about all ``others``.
        perception: knowledge, between chance and vanilla, about the other content of the forget people's
            pictures.
        left: share left of vanilla's lead over the floor on the people to forget, mean over people; below 0
            the facts are less likely than to the floor.
        worst: the share left for the person with the most left.
        worst_person: id of that person.
        spread: standard deviation of the share left over people.
        below: mean over people of the part below the floor, at least 0.
    """

    kept: Mapping[str, Kept | None]
    perception: Kept | None
    left: float | None = None
    worst: float | None = None
    worst_person: str | None = None
    spread: float | None = None
    below: float | None = None


def metrics_of(plain: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `SideEffects` in plain values as ``side_effects/NAME``, without intervals and None."""
    values = {f"kept/{name}": kept and kept["value"] for name, kept in plain.get("kept", {}).items()}
    values["perception"] = (plain.get("perception") or {}).get("value")
    values |= {name: plain.get(name) for name in ("left", "worst", "spread", "below")}
    return {f"side_effects/{name}": float(value) for name, value in values.items() if value is not None}


def thumbnail(picture: Image) -> np.ndarray:
    """The middle of a picture, where faces are, as 8 by 8 colours; shape (192,), in [0, 1]."""
    from PIL.Image import Resampling

    width, height = picture.size
    box = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
    small = picture.convert("RGB").resize((_SIDE, _SIDE), Resampling.BOX, box=box)
    return np.asarray(small, dtype=np.float64).ravel() / 255


def neighbour_groups(
    vanilla: pd.DataFrame,
    people: Collection[str],
    *,
    names: Mapping[str, str],
    thumbnails: Mapping[str, np.ndarray],
) -> dict[str, list[str]]:
    """The retain people most similar to some people, by picture, by name and by facts, as far as available.

    Each group is as large as the number of people, at least `NEIGHBOURS`, and at most a third of the
    retained.

    Args:
        vanilla: a score table.
        people: entity ids.
        names: entity id to name.
        thumbnails: entity id to `thumbnail`.
    """
    test = vanilla[vanilla["part"] == "test"]
    retain = sorted(set(test.loc[test["set"] == "retain", "entity_id"].astype(str)) - set(people))
    count = min(max(NEIGHBOURS, len(people)), max(1, len(retain) // 3))

    def by_picture(one: str, other: str) -> float:
        return -float(np.linalg.norm(thumbnails[one] - thumbnails[other]))

    def by_name(one: str, other: str) -> float:
        return SequenceMatcher(None, name_key(names[one]), name_key(names[other])).ratio()

    kinds: dict[str, tuple[Mapping[str, Any], Callable[[str, str], float]]] = {
        "picture": (thumbnails, by_picture),
        "name": (names, by_name),
    }
    groups = {}
    for kind, (having, likeness) in kinds.items():
        forget_people, retain_people = ([p for p in group if p in having] for group in (people, retain))
        if forget_people and retain_people:
            groups[kind] = nearest(retain_people, forget_people, likeness, count)
    return groups | ({"facts": neighbours(test, people, count=count)} if retain else {})


def side_effects(
    table: pd.DataFrame,
    *,
    base: pd.DataFrame,
    vanilla: pd.DataFrame,
    floor: pd.DataFrame,
    groups: Mapping[str, Collection[str]],
) -> SideEffects:
    """Side effects of a model.

    Args:
        table: its score table.
        base: score table of the model before it met anybody, on the same samples.
        vanilla: score table of the model before any unlearning.
        floor: score table of a model that never met the people to forget: retrained or base.
        groups: kind of similarity to retain people, see `neighbour_groups`.

    Raises:
        ArtifactError: if the tables were made from different samples.
    """
    tables = {"vanilla": vanilla, "the model": table, "base": base, "floor": floor}
    check_same_samples(tables)
    u, v, b, g = (_facts(tables[name]) for name in ("the model", "vanilla", "base", "floor"))
    retain = {str(person) for person in v.loc[v["set"] == "retain", "entity_id"]}
    near = {str(person) for group in groups.values() for person in group}
    kept = {name: _kept(u, v, b, "retain", group) for name, group in groups.items()}
    kept["others"] = _kept(u, v, b, "retain", retain - near)
    perception = _kept(u, v, v.assign(value=chance(v)), "perception", set(v["entity_id"].astype(str)))
    return SideEffects(kept, perception, **_evenness(u, v, g))


def _facts(table: pd.DataFrame) -> pd.DataFrame:
    """The test rows that ask by picture for a fact, each with its knowledge as `value`."""
    rows = fact_rows(table[(table["part"] == "test") & (table["modality"] == "multimodal")])
    rows = with_metrics(rows, ["knowledge"])
    return rows.assign(value=rows["knowledge"].astype("float64")).dropna(subset=["value"])


def _kept(
    u: pd.DataFrame, v: pd.DataFrame, floor: pd.DataFrame, set_name: str, people: Iterable[str]
) -> Kept | None:
    """(u - floor) / (v - floor) over these people; None if vanilla does not lead by `LEARNT`."""
    cell, members = (set_name, "multimodal"), list(people)
    means = []
    for rows in (u, v, floor):
        own = rows.loc[rows["entity_id"].isin(members), ["set", "modality", "entity_id", "value"]]
        replicates = cell_replicates(own, [cell])
        if cell not in replicates.means:
            return None
        means.append(replicates.means[cell])
    lead = means[1] - means[2]
    if lead[0] < LEARNT:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (means[0] - means[2]) / lead
    estimate = jackknife(share, replicates.groups)
    low, high = (None, None) if estimate is None else estimate.interval()
    return Kept(float(share[0]), low, high, len(replicates.groups))


def _evenness(u: pd.DataFrame, v: pd.DataFrame, g: pd.DataFrame) -> dict[str, Any]:
    """How much of each person to forget is left, in units of vanilla's mean lead over the floor."""
    by_person = []
    for rows in (u, v, g):
        own = rows[rows["set"].isin(["forget", "unseen"])]
        by_person.append(own["value"].groupby(own["entity_id"].astype(str)).mean().sort_index())
    model, vanilla, floor = by_person
    lead = float((vanilla - floor).mean()) if len(vanilla) else 0.0
    if lead < LEARNT:
        return {}
    left = (model - floor) / lead
    return {
        "left": float(left.mean()),
        "worst": float(left.max()),
        "worst_person": str(left.idxmax()),
        "spread": float(left.std()) if len(left) > 1 else None,
        "below": float((-left).clip(lower=0).mean()),
    }
