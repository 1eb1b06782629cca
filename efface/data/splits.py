"""Who is forgotten, and in which facts: splitting people into folds, and setting some aside for tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from efface.data.samples import PEOPLE, SEEN, Sample, read_labels
from efface.errors import DataError

SIDES = ("forget", "retain")
"""Splits of the people who can be forgotten. Both set people aside for validation, so that the test people
choose no setting."""
_FEWEST = 4
_STREAM = 21
_FOLD_STREAM = 23


def without_split(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples without the information who is forgotten: split `people`, and set `seen` or `unseen`."""
    for s in samples:
        if s.split in SIDES:
            yield dataclasses.replace(s, split=PEOPLE, set=SEEN if s.set in SIDES else s.set)
        else:
            yield s


def draw_fold(people: Sequence[str], *, folds: int, fold: int, seed: int) -> list[str]:
    """The people of one of several disjoint sets, which together hold all people, sorted.

    Sets differ in size by one person at most.

    Args:
        people: entity ids.
        folds: how many sets, at least 2.
        fold: which of them, in [0, folds).
        seed: not negative; draws the sets.

    Raises:
        DataError: if there are fewer people than folds.
    """
    if not 2 <= folds <= len(people):
        raise DataError(
            f"folds is {folds}: expected from 2 to {len(people)}, the number of people who can be forgotten"
        )
    order = np.random.default_rng([seed, _FOLD_STREAM]).permutation(len(people))
    ranked = sorted(people)
    return sorted(ranked[i] for i in order[fold::folds])


def draw_validation(entities: Mapping[str, Sequence[str]], *, fraction: float, seed: int) -> list[str]:
    """Entity ids whose evaluation rows are for validation: a share of the forget and of the retain people.

    A split of four or more people contributes at least one if the share is above zero; a smaller one
    contributes none, because too few would be left to test.

    Args:
        entities: split to entity ids.
        fraction: share of each split, in [0, 1).
        seed: not negative.
    """
    validation: list[str] = []
    for number, split in enumerate(SIDES):
        people = sorted(entities.get(split, ()))
        if fraction == 0 or len(people) < _FEWEST:
            continue
        count = min(max(1, round(fraction * len(people))), len(people) - 1)
        rng = np.random.default_rng([seed, _STREAM, number])
        validation += [people[i] for i in rng.permutation(len(people))[:count]]
    return sorted(validation)


def attributes_of(prepared: Path) -> dict[str, set[str | None]]:
    """Person who can be forgotten to the attributes of their training rows; None for rows without one."""
    attributes: dict[str, set[str | None]] = {}
    for row in read_labels(prepared / "samples.parquet"):
        if row["split"] == PEOPLE and row["part"] == "train":
            attributes.setdefault(row["entity_id"], set()).add(row["attribute"])
    return attributes


def check_attributes(
    forget: Mapping[str, Collection[str]], attributes: Mapping[str, Collection[str | None]]
) -> None:
    """Check that some facts of people can be forgotten and the rest retained.

    Args:
        forget: person to the attributes to forget.
        attributes: person to the attributes of their training rows; see `attributes_of`.

    Raises:
        DataError: if a person has no such attribute, or rows that do not say which fact they are about.
    """
    for person, names in forget.items():
        own_attributes = {name for name in attributes.get(person, ()) if name is not None}
        if unknown := sorted({*names} - own_attributes):
            raise DataError(
                f"attributes of {person}: {', '.join(unknown)} is none of theirs; expected some of "
                f"{', '.join(sorted(own_attributes)) or '(none)'}"
            )
        if None in attributes[person]:
            raise DataError(
                f"attributes of {person}: some of their training rows do not say which fact they are about, "
                "so that it could stay in them; fill the column attribute, or forget the whole person"
            )
