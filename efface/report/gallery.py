"""The gallery: some people with their pictures, and what each model says about them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from PIL.Image import Image

FACT_TASKS = ("cloze", "qa", "name", "choice")
"""Tasks whose answer is one bare fact; open ones first, as their generations say more."""
LARGEST_SIDE = 192
"""Pixels of a picture on the page: sharp at twice its printed size."""


@dataclass(frozen=True)
class Answer:
    """What one model generated; ``right`` is None where right and wrong do not apply."""

    model: str
    text: str
    right: bool | None
    overlap: float | None


@dataclass(frozen=True)
class Question:
    """One question with the answers of all models."""

    text: str
    gold: str
    kind: str
    answers: list[Answer]


@dataclass(frozen=True)
class Person:
    """One card of the gallery."""

    entity_id: str
    name: str
    pictures: list[tuple[str, str]]
    """Data URI and caption of each picture."""
    questions: list[Question]


def pick_people(table: pd.DataFrame, set_name: str, count: int, *, seed: int) -> list[str]:
    """At most ``count`` people of a set, drawn by the seed and sorted."""
    people = sorted(set(table.loc[(table["set"] == set_name) & (table["part"] == "test"), "entity_id"]))
    if len(people) <= count:
        return people
    return sorted(np.random.default_rng(seed).permutation(people)[:count].tolist())


def person_card(
    tables: Mapping[str, pd.DataFrame],
    entity_id: str,
    *,
    name: str,
    set_name: str,
    picture: Callable[[str], Image | None],
) -> Person:
    """The card of one person.

    Args:
        tables: score table per model, all on the same samples.
        entity_id: id of the person.
        name: the person's name.
        set_name: ``forget`` or ``retain``; cards of the former show unseen pictures (set ``test``) too.
        picture: returns the picture of a sample id, or None.
    """
    first = next(iter(tables.values()))
    person_rows = first[(first["entity_id"] == entity_id) & (first["part"] == "test")].sort_values(
        "sample_id"
    )
    rows = _choose_rows(person_rows, set_name)
    pictures, numbers = _pictures(rows, picture)
    by_sample = {model: table.set_index("sample_id") for model, table in tables.items()}
    questions = []
    for sample_id, row in rows.set_index("sample_id").iterrows():
        key = str(sample_id)
        answers = [_answer(model, table.loc[[key]].iloc[0]) for model, table in by_sample.items()]
        questions.append(
            Question(str(row["question"]), str(row["gold"]), _kind(row, numbers.get(key)), answers)
        )
    return Person(entity_id, name, pictures, questions)


def _choose_rows(person_rows: pd.DataFrame, set_name: str) -> pd.DataFrame:
    """Two facts by picture, one by an unseen picture, one by name, one free answer; as far as available."""
    rank = {task: index for index, task in enumerate(FACT_TASKS)}
    facts = person_rows[person_rows["task"].isin(FACT_TASKS)]
    facts = facts.assign(rank=facts["task"].map(rank)).sort_values(["rank", "sample_id"])
    of_set, unseen = facts[facts["set"] == set_name], facts[facts["set"] == "unseen"]
    by_picture = of_set[of_set["modality"] == "multimodal"]
    # One row per attribute.
    by_picture = by_picture[by_picture["attribute"].isna() | ~by_picture["attribute"].duplicated()].head(2)
    elsewhere = unseen[unseen["modality"] == "multimodal"].head(1)
    named = of_set[of_set["modality"] == "text"]
    twins = named[named["pair_id"].isin(by_picture["pair_id"].dropna())]
    by_name = (named if twins.empty else twins).head(1)
    free = person_rows[
        (person_rows["set"] == set_name)
        & (person_rows["task"] == "generation")
        & (person_rows["modality"] == "multimodal")
    ].head(1)
    return pd.concat([by_picture, elsewhere, by_name, free])


def _pictures(
    rows: pd.DataFrame, picture: Callable[[str], Image | None]
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Distinct pictures of the rows, numbered from 1, and the number each sample shows."""
    uris: dict[str, int] = {}
    captions: list[str] = []
    numbers: dict[str, int] = {}
    for sample_id, set_name, modality in zip(rows["sample_id"], rows["set"], rows["modality"], strict=True):
        image = picture(sample_id) if modality == "multimodal" else None
        if image is None:
            continue
        uri = image_uri(image)
        if uri not in uris:
            uris[uri] = len(uris) + 1
            captions.append("never trained on" if set_name == "unseen" else "trained on")
        numbers[sample_id] = uris[uri]
    return list(zip(uris, captions, strict=True)), numbers


def image_uri(image: Image) -> str:
    """A picture as a PNG data URI, at most ``LARGEST_SIDE`` pixels on its longer side."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _kind(row: pd.Series, number: int | None) -> str:
    task = "free answer" if row["task"] == "generation" else str(row["task"])
    return (
        f"picture {number}, {task}" if number else f"by name, {task}" if row["modality"] == "text" else task
    )


def _answer(model: str, row: pd.Series) -> Answer:
    exact, overlap = row["exact_match"], row["rouge_l"]
    right = None if pd.isna(exact) or row["task"] == "generation" else bool(exact == 1)
    return Answer(model, str(row["generation"]), right, None if pd.isna(overlap) else float(overlap))
