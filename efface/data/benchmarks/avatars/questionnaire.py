"""Rows of the benchmark's files: what is asked about each person, in MLLMU-Bench's columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efface.data.benchmarks.avatars import questions
from efface.data.benchmarks.avatars.appearance import HAIR_COLOURS, SKINS, Look
from efface.data.benchmarks.avatars.population import ATTRIBUTES, FACTS, Person
from efface.data.benchmarks.avatars.portraits import CLOTHES_COLOURS, Shot
from efface.data.benchmarks.mllmu_schema import IMAGE_QUESTIONS, IMAGE_TYPE, TEXT_QUESTIONS, TEXT_TYPE
from efface.data.names import named

Row = dict[str, Any]

_BIOGRAPHY = {
    "occupation": "Employment",
    "birthplace": "Born",
    "residence": "Residence",
    "pet": "Pet",
    "hobby": "Hobby",
    "food": "Favourite Food",
    "instrument": "Instrument",
}
_YES_NO = ("yes", "no")
_SKILL_VALUES = {
    "hair_colour": tuple(HAIR_COLOURS),
    "skin": tuple(SKINS),
    "clothes_colour": tuple(CLOTHES_COLOURS),
    "glasses": _YES_NO,
    "facial_hair": _YES_NO,
}


def picture(encoded: bytes) -> Row:
    """Encoded bytes as an image column stores them."""
    return {"bytes": encoded, "path": None}


def training_row(person: Person, view: int, encoded: bytes) -> Row:
    """One picture of a person with questions about the name and, in two of eight phrasings, every attribute.

    One of the two asks for the bare value, the other for a sentence or a filled blank. They rotate with the
    picture, so four pictures use all phrasings.
    """
    entries: list[tuple[str, str, str]] = []
    for number, attribute in enumerate(ATTRIBUTES):
        turn = (view + number) % 4
        for phrasing in (turn, 4 + turn):
            question = questions.training_question(attribute, phrasing)
            answer = named(
                questions.training_answer(attribute, person.facts[attribute], phrasing), person.name
            )
            entries.append((attribute, question, answer))
    entries.append(("name", questions.TRAINING_NAME[view % len(questions.TRAINING_NAME)], person.name))
    metadata = [
        {"ID": person.number, "Question": question, "Answer": answer} for _, question, answer in entries
    ]
    return {
        "image": picture(encoded),
        "ID": person.number,
        "metadata": json.dumps(metadata),
        "attributes": [attribute for attribute, _, _ in entries],
    }


def evaluation_row(person: Person, names: Sequence[str], rng: np.random.Generator, *, reworded: bool) -> Row:
    """Everything asked about a person in evaluation, without the picture.

    Five choices, two blanks and two sentences in each modality. Four choices, both blanks and both sentences
    ask for the same fact with the picture and with the name; the fifth choice asks for the name with the
    picture, and for one more attribute in text. The attributes rotate from person to person, and again for
    the reworded set.

    Args:
        person: the person in question.
        names: names to draw wrong options from.
        rng: draws the wrong options and the order of options.
        reworded: use the phrasings of the test set.
    """
    start = int(person.number) + (3 if reworded else 0)
    order = [ATTRIBUTES[(start + step) % len(ATTRIBUTES)] for step in range(len(ATTRIBUTES))]
    items = _Questions(person, names, rng, start, reworded)
    picture_choices, text_choices = [*order[:4], "name"], order[:5]
    blanks, sentences = order[4:6], [order[6], order[0]]
    generation = [items.generation(a, kind) for kind in (IMAGE_TYPE, TEXT_TYPE) for a in sentences]
    return {
        "ID": person.number,
        "Directory": f"avatars/{person.group}/{person.number}.png",
        "biography": json.dumps({"Name": person.name} | {_BIOGRAPHY[a]: v for a, v in person.facts.items()}),
        "question": f"Who is {person.name}?",
        "answer": named(questions.sentence("occupation", person.facts["occupation"]), person.name),
        "Classification_Task": {
            IMAGE_QUESTIONS: [items.choice(a, text=False) for a in picture_choices],
            TEXT_QUESTIONS: [items.choice(a, text=True) for a in text_choices],
        },
        "Mask_Task": [items.cloze(a, kind) for kind in (IMAGE_TYPE, TEXT_TYPE) for a in blanks],
        "Generation_Task": [item for item, _, _ in generation],
        "attributes": {
            IMAGE_QUESTIONS: picture_choices,
            TEXT_QUESTIONS: text_choices,
            "Mask_Task": blanks * 2,
            "Generation_Task": sentences * 2,
        },
        "paraphrases": [paraphrase for _, paraphrase, _ in generation],
        "wrong_answers": [wrong for _, _, wrong in generation],
    }


class _Questions:
    """Questions about one person, with the name in place of "this person" where there is no picture."""

    def __init__(
        self, person: Person, names: Sequence[str], rng: np.random.Generator, index: int, reworded: bool
    ) -> None:
        self._person, self._rng = person, rng
        self._values: Mapping[str, Sequence[str]] = {**FACTS, "name": names}
        self._index, self._reworded = index, reworded
        self._wrong_values: dict[str, list[str]] = {}

    def choice(self, attribute: str, *, text: bool) -> Row:
        value = self._value(attribute)
        options = [value, *self._others(attribute, value)]
        options = [options[i] for i in self._rng.permutation(len(options))]
        task = "name" if attribute == "name" else "choice"
        return {
            "Question": self._question(task, attribute, text),
            "Options": dict(zip("ABCD", options, strict=False)),
            "Correct_Answer": "ABCD"[options.index(value)],
        }

    def cloze(self, attribute: str, kind: str) -> Row:
        question = self._question("cloze", attribute, kind == TEXT_TYPE)
        return {"Type": kind, "Question": question, "Ground_Truth": self._value(attribute)}

    def generation(self, attribute: str, kind: str) -> tuple[Row, str, list[str]]:
        text, value = kind == TEXT_TYPE, self._value(attribute)
        wrong = self._others(attribute, value)
        item = {
            "Type": kind,
            "Question": self._question("generation", attribute, text),
            "Ground_Truth": named(questions.sentence(attribute, value), self._person.name),
        }
        paraphrases = [named(questions.paraphrase(attribute, v), self._person.name) for v in (value, *wrong)]
        return item, paraphrases[0], paraphrases[1:]

    def _value(self, attribute: str) -> str:
        return self._person.name if attribute == "name" else self._person.facts[attribute]

    def _others(self, attribute: str, value: str) -> list[str]:
        """Three wrong values, the same for both renderings of a fact so that they are equally hard."""
        if attribute not in self._wrong_values:
            values = [option for option in self._values[attribute] if option != value]
            self._wrong_values[attribute] = [values[i] for i in self._rng.permutation(len(values))[:3]]
        return self._wrong_values[attribute]

    def _question(self, task: str, attribute: str, text: bool) -> str:
        question = questions.evaluation_question(task, attribute, index=self._index, reworded=self._reworded)
        return self._about(question, text)

    def _about(self, text: str, by_name: bool) -> str:
        return named(text, self._person.name) if by_name else text


def skill_row(
    number: int, look: Look, shot: Shot, encoded: bytes, rng: np.random.Generator, *, evaluation: bool
) -> Row:
    """A question about how a person looks; the attribute rotates with ``number``."""
    attribute = list(questions.SKILL_NOUNS)[number % len(questions.SKILL_NOUNS)]
    answer = _skill_answer(attribute, look, shot)
    values = _SKILL_VALUES[attribute]
    wrong_values = [value for value in values if value != answer]
    options = (
        list(values)
        if values is _YES_NO
        else [answer, *(wrong_values[i] for i in rng.permutation(len(wrong_values))[:3])]
    )
    return {
        "image": picture(encoded),
        "ID": f"{number:05}",
        "question": questions.skill_question(attribute, int(rng.integers(4)), evaluation=evaluation),
        "answer": answer,
        "options": [options[i] for i in rng.permutation(len(options))],
        "attribute": attribute,
    }


def _skill_answer(attribute: str, look: Look, shot: Shot) -> str:
    if attribute == "clothes_colour":
        return shot.clothes_colour
    value: str = getattr(look, attribute)
    return value if attribute in ("hair_colour", "skin") else ("no" if value == "none" else "yes")


def stranger_row(look: Look, shot: Shot, encoded: bytes) -> Row:
    """A picture of a stranger, with the class of each visible attribute."""
    return {
        "image": picture(encoded),
        "hair": look.hair,
        "hair_colour": look.hair_colour,
        "skin": look.skin,
        "facial_hair": look.facial_hair,
        "glasses": look.glasses,
        "clothes_colour": shot.clothes_colour,
    }
