"""The whole benchmark from a seed: people, their pictures, and the files of both roots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Features

from efface.data.benchmarks import mllmu_schema as schema
from efface.data.benchmarks.avatars import questionnaire
from efface.data.benchmarks.avatars.appearance import Look, stranger_look
from efface.data.benchmarks.avatars.population import GROUPS, Person, draw_people
from efface.data.benchmarks.avatars.portraits import Shot, draw_shot
from efface.data.benchmarks.avatars.renderer import Renderer
from efface.data.parquet import write_parquet

PERCENTS = (5, 10, 15)
"""Shares of the fictitious people that a forget set may hold."""

_SHOTS, _QUESTIONS, _STRANGERS, _SKILLS, _FORGET = 4, 5, 6, 7, 8


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is."""

    people: int
    real: int
    holdout: int
    train_views: int
    test_views: int
    stranger_pictures: int
    skill_samples: int
    picture_size: int

    @property
    def skill_tests(self) -> int:
        """Skill questions kept for evaluation: a fifth as many, but no more than tell skills apart."""
        return max(5, min(150, self.skill_samples // 5))

    @property
    def pictures(self) -> int:
        """Pictures to draw in all."""
        of_people = (
            self.people * (self.train_views + self.test_views) + self.real * self.train_views + self.holdout
        )
        return of_people + self.stranger_pictures + self.skill_tests


def generate(root: Path, *, seed: int, sizes: Sizes, workers: int | None = None) -> None:
    """Write the benchmark to `root/eval` and `root/train`; the same seed and sizes give the same bytes.

    Args:
        root: folder of the benchmark.
        seed: of people, pictures and questions.
        sizes: how much of everything.
        workers: processes that draw; None: as many as there are cores, if there is enough to draw.

    Raises:
        DataError: if more people are asked for than can look different from each other.
    """
    counts = {"fictitious": sizes.people, "real": sizes.real, "holdout": sizes.holdout}
    people = draw_people(seed, counts)
    with Renderer(sizes.picture_size, total=sizes.pictures, workers=workers) as renderer:
        _write_people(root, seed, sizes, people, renderer)
        taken = {person.look.signature for group in people.values() for person in group}
        _write_strangers(root, seed, sizes, taken, renderer)


def _albums(
    seed: int, people: Sequence[Person], views: Sequence[int], renderer: Renderer
) -> dict[str, list[bytes]]:
    """The pictures of each person, by number; each depends on the seed, the person and its own number."""
    streams = [[seed, _SHOTS, GROUPS.index(p.group), int(p.number), view] for p in people for view in views]
    looks = [p.look for p in people for _ in views]
    shots = [draw_shot(np.random.default_rng(stream)) for stream in streams]
    pictures = renderer.pictures(list(zip(looks, shots, strict=True)))
    return {p.number: pictures[i * len(views) : (i + 1) * len(views)] for i, p in enumerate(people)}


def _write_people(
    root: Path, seed: int, sizes: Sizes, people: Mapping[str, Sequence[Person]], renderer: Renderer
) -> None:
    evaluation, training = root / "eval", root / "train"
    seen = range(sizes.train_views)
    unseen = range(sizes.train_views, sizes.train_views + sizes.test_views)

    album = _albums(seed, people["fictitious"], seen, renderer)
    asked = _evaluation_rows(people, "fictitious", seed, reworded=False)
    rows = {i: row | {"image": questionnaire.picture(album[i][0])} for i, row in asked.items()}
    taught = {
        p.number: [
            questionnaire.training_row(p, view, picture) for view, picture in enumerate(album[p.number])
        ]
        for p in people["fictitious"]
    }
    _write(evaluation / "Full_Set", list(rows.values()), schema.EVALUATION)
    _write(evaluation / "ft_Data", [r for group in taught.values() for r in group], schema.TRAINING)
    for percent in PERCENTS:
        forget = forget_numbers(seed, list(rows), percent)
        for folder, wanted in ((f"forget_{percent}", True), (f"retain_{100 - percent}", False)):
            chosen = [i for i in rows if (i in forget) is wanted]
            _write(evaluation / folder, [rows[i] for i in chosen], schema.EVALUATION)
            _write(training / folder, [r for i in chosen for r in taught[i]], schema.TRAINING)

    reworded = _evaluation_rows(people, "fictitious", seed, reworded=True)
    others = _albums(seed, people["fictitious"], unseen, renderer)
    test = [row | {"images": [questionnaire.picture(v) for v in others[i]]} for i, row in reworded.items()]
    _write(evaluation / "Test_Set", test, schema.EVALUATION_IMAGES)

    for group, folder in (("real", "Retain_Set"), ("holdout", "Holdout_Set")):
        album = _albums(seed, people[group], seen if group == "real" else range(1), renderer)
        asked = _evaluation_rows(people, group, seed, reworded=False)
        _write(
            evaluation / folder,
            [row | {"image": questionnaire.picture(album[i][0])} for i, row in asked.items()],
            schema.EVALUATION,
        )
        if group == "real":
            known = [
                questionnaire.training_row(p, v, b)
                for p in people[group]
                for v, b in enumerate(album[p.number])
            ]
            _write(training / "Base_Data", known, schema.TRAINING)


def forget_numbers(seed: int, numbers: Sequence[str], percent: int) -> set[str]:
    """The people to forget; every percentage is a draw of its own: small sets are not part of large ones."""
    count = max(1, round(len(numbers) * percent / 100))
    rng = np.random.default_rng([seed, _FORGET, percent])
    return {numbers[i] for i in rng.permutation(len(numbers))[:count]}


def _evaluation_rows(
    people: Mapping[str, Sequence[Person]], group: str, seed: int, *, reworded: bool
) -> dict[str, questionnaire.Row]:
    names = [person.name for person in people[group]]
    if len(names) < 4:  # too few for three wrong options: the other groups help out
        names = [person.name for others in people.values() for person in others]
    rows = {}
    for person in people[group]:
        stream = [seed, _QUESTIONS, GROUPS.index(group), int(person.number), int(reworded)]
        rng = np.random.default_rng(stream)
        rows[person.number] = questionnaire.evaluation_row(person, names, rng, reworded=reworded)
    return rows


def _write_strangers(
    root: Path, seed: int, sizes: Sizes, taken: set[tuple[str, str, str]], renderer: Renderer
) -> None:
    rng = np.random.default_rng([seed, _STRANGERS])
    seen = _strangers(rng, sizes.stranger_pictures, taken, renderer)
    _write(
        root / "train" / "Strangers", [questionnaire.stranger_row(*face) for face in seen], schema.STRANGERS
    )

    # Skills are taught on the pictures that train the vision tower and asked about strangers never seen.
    rng = np.random.default_rng([seed, _SKILLS])
    taught = [
        questionnaire.skill_row(number, *seen[number % len(seen)], rng, evaluation=False)
        for number in range(sizes.skill_samples)
    ]
    asked = [
        questionnaire.skill_row(
            sizes.skill_samples + number, *_strangers(rng, 1, taken, renderer)[0], rng, evaluation=True
        )
        for number in range(sizes.skill_tests)
    ]
    _write(root / "train" / "Skills_Train", taught, schema.SKILLS)
    _write(root / "eval" / "Skills_Test", asked, schema.SKILLS)


def _strangers(
    rng: np.random.Generator, count: int, taken: set[tuple[str, str, str]], renderer: Renderer
) -> list[tuple[Look, Shot, bytes]]:
    """Random faces unlike anybody of the benchmark, and their pictures."""
    faces = [(stranger_look(rng, taken), draw_shot(rng)) for _ in range(count)]
    return [(*face, picture) for face, picture in zip(faces, renderer.pictures(faces), strict=True)]


def _write(folder: Path, rows: Sequence[questionnaire.Row], features: Features) -> None:
    write_parquet(rows, folder / "train-00000-of-00001.parquet", features)
