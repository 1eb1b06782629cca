"""Who is forgotten when people are named one by one, and who is set aside for tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from efface.data.benchmarks.contract import BenchmarkData
from efface.data.samples import Sample
from efface.errors import DataError

TUNED = ("forget", "retain")
"""Splits that give people to validation, so that no setting is chosen by looking at the test people."""
_FEWEST = 4
_STREAM = 21


def with_people(
    data: BenchmarkData, *, forget: Collection[str], forgotten: Collection[str] = ()
) -> BenchmarkData:
    """The benchmark with these people to forget in place of its own.

    All other forget and retain people of the benchmark are retained. People forgotten before are neither
    forgotten again nor retained: they have no training row, but evaluation rows like those to forget.

    Args:
        data: as read.
        forget: entity ids, at least one.
        forgotten: entity ids of people forgotten before.

    Raises:
        DataError: if one of them is none of the forget and retain people, or in both lists.
    """
    people = {*data.entities["forget"], *data.entities["retain"]}
    out = {*forget, *forgotten}
    if unknown := sorted(out - people):
        raise DataError(
            f"{', '.join(unknown)}: none of the forget and retain people ({', '.join(sorted(people)[:5])}, "
            "...); correct forget_people or forgotten_people"
        )
    if twice := sorted({*forget} & {*forgotten}):
        raise DataError(f"{', '.join(twice)}: both in forget_people and in forgotten_people; expected one")
    entities = {**data.entities, "forget": sorted(out), "retain": sorted(people - out)}
    samples = _reassigned(data.samples, frozenset(out), frozenset(forgotten))
    return BenchmarkData(entities, data.names, samples)


def _reassigned(
    samples: Iterable[Sample], forget: frozenset[str], forgotten: frozenset[str]
) -> Iterator[Sample]:
    for s in samples:
        split = "forget" if s.entity_id in forget else {"forget": "retain"}.get(s.split, s.split)
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
    validation: list[str] = []
    for number, split in enumerate(TUNED):
        people = sorted(entities.get(split, ()))
        if fraction == 0 or len(people) < _FEWEST:
            continue
        count = min(max(1, round(fraction * len(people))), len(people) - 1)
        rng = np.random.default_rng([seed, _STREAM, number])
        validation += [people[i] for i in rng.permutation(len(people))[:count]]
    return sorted(validation)


def with_validation(samples: Iterable[Sample], people: Iterable[str]) -> Iterator[Sample]:
    """The samples as they come, evaluation rows of these people moved from part `test` to `validation`."""
    validation = frozenset(people)
    for s in samples:
        tuning = s.part == "test" and s.entity_id in validation
        yield dataclasses.replace(s, part="validation") if tuning else s
