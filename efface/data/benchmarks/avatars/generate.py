"""The whole benchmark from a seed: people, their pictures, and the files of both roots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Features
from tqdm import tqdm

from efface.data.benchmarks import mllmu_schema as schema
from efface.data.benchmarks.avatars import questionnaire
from efface.data.benchmarks.avatars.appearance import Look, stranger_look
from efface.data.benchmarks.avatars.population import GROUPS, Person, draw_people
from efface.data.benchmarks.avatars.portraits import Shot, draw_shot, portrait
from efface.data.parquet import write_parquet

PERCENTS = (5, 10, 15)
"""Shares of the fictitious people that a forget set may hold."""

Face = tuple[Look, Shot]
Draw = Callable[[Sequence[Face]], list[bytes]]
Signature = tuple[str, str, str]

_SHOTS, _QUESTIONS, _STRANGERS, _SKILLS, _FORGET, _PERCEPTION = 4, 5, 6, 7, 8, 9
_PERCEIVED = 2
"""Questions about what else the first picture of a person shows."""


@dataclass(frozen=True)
class Sizes:
    """How many people, pictures and questions to generate."""

    people: int
    real: int
    holdout: int
    train_views: int
    test_views: int
    stranger_pictures: int
    skill_samples: int
    picture_size: int
    language: bool = False

    @property
    def skill_tests(self) -> int:
        """Skill questions for evaluation: a fifth as many as for training, from 5 to 150."""
        return max(5, min(150, self.skill_samples // 5))

    @property
    def pictures(self) -> int:
        """Pictures to draw in all."""
        of_people = (
            self.people * (self.train_views + self.test_views) + self.real * self.train_views + self.holdout
        )
        return of_people + self.stranger_pictures + self.skill_tests


def generate(
    root: Path, *, seed: int, sizes: Sizes, left_out: Callable[[str], bool] = lambda entity_id: False
) -> None:
    """Write the benchmark to `root/eval` and `root/train`; the same seed and sizes give the same bytes.

    Args:
        root: folder of the benchmark.
        seed: seed of people, pictures and questions.
        sizes: how many of each.
        left_out: whether the person with an entity id is drawn but not written, which leaves the others
            unchanged.

    Raises:
        DataError: if there are more people than can look different from each other.
    """
    counts = {"fictitious": sizes.people, "real": sizes.real, "holdout": sizes.holdout}
    everyone = draw_people(seed, counts)
    people = {
        group: [person for person in members if not left_out(f"{group}/{person.number}")]
        for group, members in everyone.items()
    }
    with tqdm(total=sizes.pictures, desc="portraits", unit="picture", mininterval=0.5) as progress:

        def draw(faces: Sequence[Face]) -> list[bytes]:
            pictures = []
            for look, shot in faces:
                pictures.append(portrait(look, shot, size=sizes.picture_size))
                progress.update()
            return pictures

        _write_people(root, seed, sizes, people, draw)
        signatures = {person.look.signature for group in everyone.values() for person in group}
        _write_strangers(root, seed, sizes, signatures, draw)
    if sizes.language:
        _write_language(root)


def _albums(seed: int, people: Sequence[Person], views: Sequence[int], draw: Draw) -> dict[str, list[bytes]]:
    """The pictures of each person, by number; each depends on the seed, the person and its own number."""
    looks = [p.look for p in people for _ in views]
    shots = [_shot(seed, p, view) for p in people for view in views]
    pictures = draw(list(zip(looks, shots, strict=True)))
    return {p.number: pictures[i * len(views) : (i + 1) * len(views)] for i, p in enumerate(people)}


def _shot(seed: int, person: Person, view: int) -> Shot:
    return draw_shot(
        np.random.default_rng([seed, _SHOTS, GROUPS.index(person.group), int(person.number), view])
    )


def _perception_rows(
    seed: int, people: Sequence[Person], album: Mapping[str, Sequence[bytes]]
) -> list[questionnaire.Row]:
    """What else the first picture of each person shows; never trained, and no fact of theirs."""
    rows = []
    for person in people:
        rng = np.random.default_rng([seed, _PERCEPTION, int(person.number)])
        for number in range(_PERCEIVED * int(person.number), _PERCEIVED * (int(person.number) + 1)):
            row = questionnaire.skill_row(
                number, person.look, _shot(seed, person, 0), album[person.number][0], rng, evaluation=True
            )
            rows.append(row | {"ID": person.number})
    return rows


def _write_people(
    root: Path, seed: int, sizes: Sizes, people: Mapping[str, Sequence[Person]], draw: Draw
) -> None:
    evaluation, training = root / "eval", root / "train"
    train_views = range(sizes.train_views)
    test_views = range(sizes.train_views, sizes.train_views + sizes.test_views)

    album = _albums(seed, people["fictitious"], train_views, draw)
    rows = _evaluation_rows(people, "fictitious", seed, album)
    training_rows = _training_rows(people["fictitious"], album)
    _write(evaluation / "Full_Set", list(rows.values()), schema.EVALUATION)
    perceived = _perception_rows(seed, people["fictitious"], album)
    _write(evaluation / "Perception_Test", perceived, schema.SKILLS)
    _write(evaluation / "ft_Data", [r for group in training_rows.values() for r in group], schema.TRAINING)
    for percent in PERCENTS:
        forget = forget_numbers(seed, list(rows), percent)
        retain = [number for number in rows if number not in forget]
        for folder, numbers in (
            (f"forget_{percent}", [number for number in rows if number in forget]),
            (f"retain_{100 - percent}", retain),
        ):
            _write(evaluation / folder, [rows[number] for number in numbers], schema.EVALUATION)
            facts = [row for number in numbers for row in training_rows[number]]
            _write(training / folder, facts, schema.TRAINING)

    album = _albums(seed, people["fictitious"], test_views, draw)
    rows = _evaluation_rows(people, "fictitious", seed, album, reworded=True)
    _write(evaluation / "Test_Set", list(rows.values()), schema.EVALUATION_IMAGES)

    for group, folder in (("real", "Retain_Set"), ("holdout", "Holdout_Set")):
        album = _albums(seed, people[group], train_views if group == "real" else range(1), draw)
        rows = _evaluation_rows(people, group, seed, album)
        _write(evaluation / folder, list(rows.values()), schema.EVALUATION)
        if group == "real":
            training_rows = _training_rows(people[group], album)
            facts = [row for rows_of_one in training_rows.values() for row in rows_of_one]
            _write(training / "Base_Data", facts, schema.TRAINING)


def forget_numbers(seed: int, numbers: Sequence[str], percent: int) -> set[str]:
    """The people to forget; each percentage is drawn anew, so small sets are not part of large ones."""
    count = max(1, round(len(numbers) * percent / 100))
    rng = np.random.default_rng([seed, _FORGET, percent])
    return {numbers[i] for i in rng.permutation(len(numbers))[:count]}


def _training_rows(
    people: Sequence[Person], album: Mapping[str, Sequence[bytes]]
) -> dict[str, list[questionnaire.Row]]:
    return {
        p.number: [questionnaire.training_row(p, view, image) for view, image in enumerate(album[p.number])]
        for p in people
    }


def _evaluation_rows(
    people: Mapping[str, Sequence[Person]],
    group: str,
    seed: int,
    album: Mapping[str, Sequence[bytes]],
    *,
    reworded: bool = False,
) -> dict[str, questionnaire.Row]:
    """A row per person: reworded questions come with all pictures, the others with the first."""
    names = [person.name for person in people[group]]
    if len(names) < 4:  # too few for three wrong options: names of the other groups are added
        names = [person.name for members in people.values() for person in members]
    rows = {}
    for person in people[group]:
        stream = [seed, _QUESTIONS, GROUPS.index(group), int(person.number), int(reworded)]
        rng = np.random.default_rng(stream)
        row = questionnaire.evaluation_row(person, names, rng, reworded=reworded)
        pictures = [questionnaire.picture(encoded) for encoded in album[person.number]]
        rows[person.number] = row | ({"images": pictures} if reworded else {"image": pictures[0]})
    return rows


def _write_strangers(root: Path, seed: int, sizes: Sizes, signatures: set[Signature], draw: Draw) -> None:
    rng = np.random.default_rng([seed, _STRANGERS])
    strangers = _strangers(rng, sizes.stranger_pictures, signatures, draw)
    rows = [questionnaire.stranger_row(*stranger) for stranger in strangers]
    _write(root / "train" / "Strangers", rows, schema.STRANGERS)

    # Skills are taught on the pictures that train the vision tower, and tested on new strangers.
    rng = np.random.default_rng([seed, _SKILLS])
    rows = [
        questionnaire.skill_row(number, *strangers[number % len(strangers)], rng, evaluation=False)
        for number in range(sizes.skill_samples)
    ]
    _write(root / "train" / "Skills_Train", rows, schema.SKILLS)
    rows = []
    for number in range(sizes.skill_samples, sizes.skill_samples + sizes.skill_tests):
        (stranger,) = _strangers(rng, 1, signatures, draw)
        rows.append(questionnaire.skill_row(number, *stranger, rng, evaluation=True))
    _write(root / "eval" / "Skills_Test", rows, schema.SKILLS)


def _write_language(root: Path) -> None:
    """What a pretrained decoder knows: facts about the world and plain English, half of it for training.

    The facts are common knowledge; the sentences were written for this file.
    """
    contents = json.loads(Path(__file__).with_name("language.json").read_text(encoding="utf-8"))
    pairs = [("fact", *fact) for fact in contents["facts"]]
    pairs += [("sentence", f"Go on: {start}", end) for start, end in contents["sentences"]]
    rows = [
        {
            "image": None,
            "ID": f"{number:03}",
            "question": question,
            "answer": answer,
            "options": None,
            "attribute": kind,
        }
        for number, (kind, question, answer) in enumerate(pairs)
    ]
    _write(root / "train" / "Language_Train", rows[::2], schema.SKILLS)
    _write(root / "eval" / "Language_Test", rows[1::2], schema.SKILLS)


def _strangers(
    rng: np.random.Generator, count: int, signatures: set[Signature], draw: Draw
) -> list[tuple[Look, Shot, bytes]]:
    """Random faces unlike the people of the benchmark, and their pictures."""
    faces = [(stranger_look(rng, signatures), draw_shot(rng)) for _ in range(count)]
    return [(*face, picture) for face, picture in zip(faces, draw(faces), strict=True)]


def _write(folder: Path, rows: Sequence[questionnaire.Row], features: Features) -> None:
    write_parquet(rows, folder / "train-00000-of-00001.parquet", features)
