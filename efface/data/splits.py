"""Who is set aside for tuning, so that no choice is ever made by looking at the test people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from efface.data.samples import Sample
from efface.errors import DataError

TUNED = ("forget", "retain")
"""Splits that give people to validation."""
_FEWEST = 4
_STREAM = 21


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
