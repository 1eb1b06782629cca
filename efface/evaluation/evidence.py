"""What a model still knows about the people of one request, beyond its answers.

Besides the answers (`gates`), a request is judged by the probability of the facts, by membership inference,
by whether the model is nearer to one that never met the people than to vanilla, and by what similar people
lose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from efface.evaluation import LEARNT
from efface.evaluation.comparisons import RelativeDistance
from efface.evaluation.gates import FORGET_CELLS, Gate, share_retained
from efface.evaluation.goals import Goal
from efface.evaluation.metrics import fact_rows, with_metrics
from efface.evaluation.summary import REFERENCE_ATTACK, Membership, membership, relative_distance_of

if TYPE_CHECKING:
    import pandas as pd

CELLS = FORGET_CELLS | {"reworded": ("unseen", "text")}
"""Kind of question to its set and modality; the last two are by name, and count for the goal ``full``."""
NEIGHBOURS = 5


@dataclass(frozen=True)
class Evidence:
    """Measurements on the people of one request.

    Attributes:
        left: kind of question to the probability of their facts as a share of the way from the floor to
            vanilla, in [-1, 1]; below 0 the facts are less likely than to a model that never met the people.
            None where vanilla does not lead by `LEARNT`.
        membership: their picture questions against people whom no model met; None without such people.
        floor_membership: the same attack on the floor.
        relative: whether the model is nearer to the floor or to vanilla.
        neighbours: the retain people most similar to them.
        neighbours_share: exact match on the neighbours as a share of vanilla's.
    """

    left: dict[str, float | None]
    membership: Membership | None
    floor_membership: Membership | None
    relative: RelativeDistance | None
    neighbours: list[str]
    neighbours_share: float | None

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON, without the neighbours' ids."""
        values = asdict(self)
        del values["neighbours"]
        return values | {"neighbours": len(self.neighbours)}


def evidence(
    table: pd.DataFrame, vanilla: pd.DataFrame, floor: pd.DataFrame, people: Collection[str]
) -> Evidence:
    """Measure one model on some people.

    Args:
        table: score table of the model.
        vanilla: score table of the model before any unlearning, on the same samples.
        floor: score table of a model that never met the people: retrained or base.
        people: entity ids, of the sets forget and unseen.

    Raises:
        ArtifactError: if the tables were made from different samples.
    """
    tables = {name: _of(t, people) for name, t in (("u", table), ("v", vanilla), ("g", floor))}
    left: dict[str, float | None] = {}
    for kind, (name, modality) in CELLS.items():
        u, v, g = (knowledge_of(t, name, modality) for t in tables.values())
        known = u is not None and v is not None and g is not None and v - g >= LEARNT
        left[kind] = max(-1.0, min(1.0, (u - g) / (v - g))) if known else None  # type: ignore[operator]
    neighbour_ids = neighbours(vanilla, people)
    of_neighbours = (vanilla["set"] == "retain") & vanilla["entity_id"].isin(neighbour_ids)
    of_near = table[table["sample_id"].isin(list(vanilla.loc[of_neighbours, "sample_id"]))]
    return Evidence(
        left=left,
        membership=_membership(tables["u"]),
        floor_membership=_membership(tables["g"]),
        relative=relative_distance_of(tables["u"], tables["v"], tables["g"]),
        neighbours=neighbour_ids,
        neighbours_share=share_retained(of_near, vanilla[of_neighbours], ["retain"]),
    )


@dataclass(frozen=True)
class Known:
    """Whether a model knows some people before anything is unlearned.

    Attributes:
        numbers: `knowledge`, mean probability of their facts by picture or, without pictures, by name;
            `floor`, the same of a model that never met them; `membership`, AUC. What cannot be measured is
            left out.
        learnt: whether the model leads by `LEARNT` on any kind of question.
    """

    numbers: dict[str, float]
    learnt: bool


def known(table: pd.DataFrame, floor: pd.DataFrame, people: Collection[str]) -> Known:
    """What a model knows about people, compared with a model that never met them.

    Args:
        table: score table of the model.
        floor: score table of a model that never met the people, on the same samples.
        people: entity ids, of the sets forget and unseen.
    """
    of_neighbours, floors = _of(table, people), _of(floor, people)
    values = {
        kind: (knowledge_of(of_neighbours, *cell), knowledge_of(floors, *cell))
        for kind, cell in CELLS.items()
    }
    pairs = {kind: (u, g) for kind, (u, g) in values.items() if u is not None and g is not None}
    numbers = {}
    if pairs:
        numbers["knowledge"], numbers["floor"] = next(iter(pairs.values()))
    if attack := _membership(of_neighbours):
        numbers["membership"] = attack.auc
    return Known(numbers, learnt=any(u - g >= LEARNT for u, g in pairs.values()))


def knowledge_of(table: pd.DataFrame, name: str, modality: str) -> float | None:
    """Mean probability of the facts of a set and modality, in [0, 1]; None without such a question."""
    rows = fact_rows(
        table[(table["part"] == "test") & (table["set"] == name) & (table["modality"] == modality)]
    )
    values = with_metrics(rows, ["knowledge"])["knowledge"].dropna().sort_values()
    return float(values.mean()) if len(values) else None


def neighbours(table: pd.DataFrame, people: Collection[str], *, count: int = NEIGHBOURS) -> list[str]:
    """At most ``count`` retain people who share most facts with one of these people, sorted by id.

    Similarity is the share of attributes with the same gold answer, the highest over ``people``; without
    attributes or common answers all retain people are equally similar.

    Args:
        table: a score table.
        people: entity ids.
        count: number of people to return.
    """
    rows = fact_rows(table[table["part"] == "test"])
    column = "attribute" if "attribute" in rows.columns else "question"
    facts = {
        str(person): set(zip(of_person[column].astype(str), of_person["gold"].astype(str), strict=True))
        for person, of_person in rows[rows["set"].isin(["retain", "forget"])].groupby("entity_id")
    }
    retain = sorted(set(rows.loc[rows["set"] == "retain", "entity_id"].astype(str)) - set(people))

    def likeness(one: str, other: str) -> float:
        return len(facts[one] & facts[other]) / max(1, len(facts[one] | facts[other]))

    those = [person for person in people if person in facts]
    return nearest(retain, those, likeness, count)


def nearest(
    others: Collection[str], people: Collection[str], likeness: Callable[[str, str], float], count: int
) -> list[str]:
    """Those of ``others`` who are most like some of ``people``, at most ``count``, by id.

    Args:
        others: to choose from.
        people: like one of whom they are to be; without any, one is as near as another.
        likeness: of two people, higher is more alike; the highest over ``people`` counts.
        count: how many.
    """
    likest = {other: max((likeness(one, other) for one in people), default=0.0) for other in others}
    return sorted(sorted(likest, key=lambda other: (-likest[other], other))[:count])


def evidence_gates(
    request: str,
    measured: Evidence,
    *,
    goal: Goal,
    knowledge_at_most: float | None,
    membership_at_most: float | None,
    tpr_at_most: float | None,
    relative_p_at_most: float | None,
    neighbours_at_least: float | None,
) -> list[Gate]:
    """The gates on one request's evidence; a limit of None gives no gate.

    Args:
        request: its id.
        measured: its evidence.
        goal: ``visual`` leaves the facts reachable by name, ``full`` does not.
        knowledge_at_most: absolute share left, the largest over the kinds of question.
        membership_at_most: AUC, in [0, 1]; no gate without people whom no model met.
        tpr_at_most: true-positive rate at a false-positive rate of 1 %; no gate without such people.
        relative_p_at_most: p value of the relative test, in which the model must also be nearer to the floor;
            at best 2 / 2**people, so it cannot be small with few people.
        neighbours_at_least: share of vanilla's exact match.
    """
    kinds = [kind for kind in CELLS if goal == "full" or kind in ("seen", "unseen")]
    shares = [abs(share) for kind in kinds if (share := measured.left[kind]) is not None]
    attack, relative = measured.membership, measured.relative
    p_value = None if relative is None else relative.p_value if relative.difference > 0 else 1.0
    conditions: list[tuple[str, float | None, float | None, Literal["at most", "at least"]]] = [
        ("knowledge", max(shares, default=None), knowledge_at_most, "at most"),
        ("membership", attack.auc if attack else None, membership_at_most, "at most"),
        ("tpr", attack.tpr if attack else None, tpr_at_most, "at most"),
        ("relative_p", p_value, relative_p_at_most, "at most"),
        ("neighbours", measured.neighbours_share, neighbours_at_least, "at least"),
    ]
    return [
        Gate(name, request, value, limit, holds)
        for name, value, limit, holds in conditions
        if limit is not None and (value is not None or name == "knowledge")
    ]


def _of(table: pd.DataFrame, people: Collection[str]) -> pd.DataFrame:
    """The table without the people of other requests."""
    elsewhere = table["set"].isin(["forget", "unseen"]) & ~table["entity_id"].isin(list(people))
    return table[~elsewhere]


def _membership(table: pd.DataFrame) -> Membership | None:
    return membership(table, attacks=[REFERENCE_ATTACK]).get(REFERENCE_ATTACK)
