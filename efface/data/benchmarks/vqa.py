"""A benchmark of one's own as samples: rows of picture, question, answer and person.

Every row is a training fact, with its rendering as text beside it where it has one. A `part` column (train or
test) says which rows are asked in evaluation; without it the training facts themselves are asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.benchmarks.reading import SPLIT_NAMES, BadRows, BenchmarkData, Forgetting, sample_id
from efface.data.benchmarks.vqa_files import inside, rows, tables
from efface.data.samples import Sample, asks_for_name, named, text_rendering
from efface.errors import DataError

Row = dict[str, Any]

_STREAM = 22


def read_benchmark(root: Path, *, name: str, forget: Forgetting, bad_rows: BadRows) -> BenchmarkData:
    """Samples of the table in `root/data`.

    Args:
        root: folder of the benchmark.
        name: benchmark name; part of every sample id.
        forget: the people to forget, or their share, drawn from its seed.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        DataError: if the table or a column is missing, a person to forget is nobody of the table, or a row
            cannot be used.
    """
    return _Reader(root / "data", name, forget, bad_rows).read()


class _Reader:
    def __init__(self, base: Path, benchmark: str, forget: Forgetting, bad_rows: BadRows) -> None:
        self._base, self._files = base, tables(base)
        self._id = functools.partial(sample_id, benchmark)
        self._forget, self._bad = forget, bad_rows
        self._rows_out: set[tuple[str, int]] = set()
        self._names: dict[str, str] = {}
        self._split: dict[str, str] = {}

    def read(self) -> BenchmarkData:
        people = self._survey()
        forgotten = self._to_forget(sorted(people))
        self._split = {p: "forget" if p in forgotten else "retain" for p in people}
        entities: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
        for person in sorted(people):
            entities[self._split[person]].append(f"person/{person}")
        names = {f"person/{person}": name for person, name in sorted(self._names.items())}
        return BenchmarkData(entities, names, self._samples())

    def _survey(self) -> set[str]:
        """The people of the rows that can be used; names are learnt on the way."""
        people: set[str] = set()
        for file, number, row in rows(self._files):
            person, where = _text(row.get("person")), f"row {number}"
            if reason := self._fault(row, person):
                self._bad.found(file, where, reason, "correct the row")
            elif self._decodes(row, file, f"{where}, person {person}"):
                people.add(person)
                # A person given by name needs no column for it; a bare number is no name.
                name = _text(row.get("name")) or (person if any(map(str.isalpha, person)) else "")
                if name:
                    self._names.setdefault(person, name)
                continue
            self._rows_out.add((str(file), number))
        return people

    def _fault(self, row: Row, person: str) -> str | None:
        if not person:
            return "no person; expected who the row is about"
        for column in ("question", "answer"):
            if not _text(row.get(column)):
                return f"empty {column}; expected some text, got {row.get(column)!r}"
        if row.get("part") not in (None, "train", "test"):
            return f"part is {row['part']!r}; expected train or test"
        image = row.get("image")
        if isinstance(image, str) and not inside(self._base, image):
            return f"the picture {image} lies outside the folder of the table; expected a path inside it"
        if isinstance(image, str) and not (self._base / image).is_file():
            return f"the picture {image} does not exist in the folder of the table"
        options = _listed(row.get("options"))
        if options is not None and _text(row["answer"]) not in options:
            return f"the answer {row['answer']!r} is none of the options {list(options)}"
        return None

    def _decodes(self, row: Row, file: Path, where: str) -> bool:
        return row.get("image") is None or self._bad.picture(self._encoded(row), file, where)

    def _encoded(self, row: Row) -> bytes | None:
        image = row.get("image")
        if isinstance(image, str):
            return (self._base / image).read_bytes()
        encoded = image.get("bytes") if isinstance(image, dict) else image
        return encoded if isinstance(encoded, bytes) else None

    def _to_forget(self, people: list[str]) -> set[str]:
        if self._forget.people is not None:
            named = {person.removeprefix("person/") for person in self._forget.people}
            if unknown := sorted(named - set(people)):
                raise DataError(
                    f"{self._files[0]}: nobody is called {', '.join(unknown)} (people: "
                    f"{', '.join(people[:10])}, ...); correct prepare.forget_people"
                )
            return named
        count = max(1, round(self._forget.fraction * len(people)))
        rng = np.random.default_rng([self._forget.seed, _STREAM])
        return {people[i] for i in rng.permutation(len(people))[:count]}

    def _samples(self) -> Iterator[Sample]:
        for part in ("train", "test"):
            counts: dict[str, int] = {}
            for file, number, row in rows(self._files):
                if (str(file), number) in self._rows_out or row.get("part") not in (None, part):
                    continue
                person = _text(row["person"])
                index = counts[person] = counts.get(person, -1) + 1
                for rendering in self._renderings(row, person, part, index):
                    sample = Sample.from_row(rendering)
                    if self._bad.accepts(sample, file, f"row {number}"):
                        yield sample

    def _renderings(self, row: Row, person: str, part: str, index: int) -> Iterator[Row]:
        """The row as it is, and in text where a picture's question can be asked by name."""
        entity, split, encoded = f"person/{person}", self._split[person], self._encoded(row)
        question, answer = _text(row["question"]), _text(row["answer"])
        naming = asks_for_name(question)
        options = _listed(row.get("options"))
        task = "name" if naming else "qa" if options is None else "choice"
        modality = "text" if encoded is None else "multimodal"
        name = self._names.get(person)
        written = None if encoded is None or naming or name is None else text_rendering(question, name)
        common = {
            "entity_id": entity,
            "split": split,
            "part": part,
            "set": None if part == "train" else split,
            "task": task,
            "attribute": _text(row.get("attribute")) or None,
            "options": options,
            "paraphrase": _text(row.get("paraphrase")) or None,
            "wrong_answers": _listed(row.get("wrong_answers")),
            "pair_id": None if written is None else self._id(entity, part, "pair", index),
        }
        given = {"modality": modality, "image": encoded, "question": question, "answer": answer}
        yield common | given | {"sample_id": self._id(entity, part, task, modality, index)}
        if written is not None and name is not None:
            text: Row = {"modality": "text", "question": written, "answer": named(answer, name)}
            if options is not None:
                text["options"] = [named(option, name) for option in options]
            # Its own number: a row may be in text by itself.
            yield common | text | {"sample_id": self._id(entity, part, task, "text", "rendering", index)}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _listed(value: Any) -> list[str] | None:
    """A list; in csv it is written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return None if value is None else [str(item) for item in value]
