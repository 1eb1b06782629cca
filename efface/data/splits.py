"""Who is forgotten when people are named one by one, and who is set aside for tuning, so that no choice is
ever made by looking at the test people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from efface.data.benchmarks.reading import BenchmarkData
from efface.data.samples import Sample
from efface.errors import DataError

TUNED = ("forget", "retain")
"""Splits that give people to validation."""
_FEWEST = 4
_STREAM = 21


def with_people(
    data: BenchmarkData, *, forget: Collection[str], forgotten: Collection[str] = ()
) -> BenchmarkData:
    """The benchmark with these people to forget in place of its own.

    Everybody else of its forget and retain people is to be kept. Those forgotten before are neither to be
    forgotten again nor kept: they have no training row, but are asked about like those to forget.

    Args:
        data: as read.
        forget: entity ids, at least one.
        forgotten: entity ids of others, forgotten before.

    Raises:
        DataError: if somebody is named who is nobody of the forget and retain people, or named twice.
    """
    named, known = {*forget, *forgotten}, {*data.entities["forget"], *data.entities["retain"]}
    if unknown := sorted(named - known):
        raise DataError(
            f"nobody is called {', '.join(unknown)} (people: {', '.join(sorted(known)[:5])}, ...); correct "
            "prepare.forget_people or prepare.forgotten_people"
        )
    if twice := sorted({*forget} & {*forgotten}):
        raise DataError(
            f"{', '.join(twice)}: both in prepare.forget_people and in prepare.forgotten_people; expected one"
        )
    entities = {**data.entities, "forget": sorted(named), "retain": sorted(known - named)}
    gone = frozenset(forgotten)
    return BenchmarkData(entities, data.names, _reassigned(data.samples, frozenset(named), gone))


def _reassigned(
    samples: Iterable[Sample], named: frozenset[str], forgotten: frozenset[str]
) -> Iterator[Sample]:
    for s in samples:
        split = "forget" if s.entity_id in named else {"forget": "retain"}.get(s.split, s.split)
        if (s.part == "train" and s.entity_id in forgotten) or (split == "retain" and s.set == "unseen"):
            continue
        kind = split if s.set in ("forget", "retain") else s.set
        yield s if (split, kind) == (s.split, s.set) else dataclasses.replace(s, split=split, set=kind)


def draw_validation(entities: Mapping[str, Sequence[str]], *, fraction: float, seed: int) -> list[str]:
    """Entity ids whose evaluation rows are for validation: a share of the forget and of the retain people.

    A split of at least four people gives at least one as soon as the share is above zero; a smaller one gives
    none, because too few would be left to test.

    Args:
        entities: split to entity ids.
        fraction: share of each split, in [0, 1).
        seed: not negative.

    Raises:
        DataError: if the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation fraction is {fraction}: expected a share in [0, 1)")
    drawn: list[str] = []
    for number, split in enumerate(TUNED):
        people = sorted(entities.get(split, ()))
        if fraction == 0 or len(people) < _FEWEST:
            continue
        count = min(max(1, round(fraction * len(people))), len(people) - 1)
        rng = np.random.default_rng([seed, _STREAM, number])
        drawn += [people[i] for i in rng.permutation(len(people))[:count]]
    return sorted(drawn)


def with_validation(samples: Iterable[Sample], people: Iterable[str]) -> Iterator[Sample]:
    """The samples as they come, evaluation rows of these people moved from part `test` to `validation`."""
    chosen = frozenset(people)
    for s in samples:
        moved = s.part == "test" and s.entity_id in chosen
        yield dataclasses.replace(s, part="validation") if moved else s
