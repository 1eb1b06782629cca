"""MLLMU-Bench files as samples: the published benchmark and every benchmark written in its format.

People are joined by their ID string. Counts of questions are whatever the files hold. Folders that only some
benchmarks have (Holdout_Set, Base_Data, Skills_Train, Skills_Test) are read when they are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.benchmarks.mllmu_schema import IMAGE_QUESTIONS, IMAGE_TYPE, TEXT_QUESTIONS, TEXT_TYPE
from efface.data.parquet import read_column_names, read_rows
from efface.data.samples import Sample, asks_for_name, named, text_rendering
from efface.errors import DataError

Row = dict[str, Any]

_PROFILE = ("ID", "biography", "Classification_Task", "Mask_Task", "Generation_Task")


@dataclass(frozen=True)
class BenchmarkData:
    """What a benchmark says, before anybody is set aside for validation."""

    samples: list[Sample]
    """Training rows, then evaluation rows, all with part `train` or `test`."""
    entities: dict[str, list[str]]
    """Split to its entity ids, sorted."""
    names: dict[str, str]
    """Entity id to name, where the benchmark tells it."""


def read_benchmark(root: Path, *, name: str, forget_percent: int) -> BenchmarkData:
    """Samples of `root/eval` and `root/train`, with `forget_percent` % of the people to forget."""
    return read_roots(root / "eval", root / "train", name=name, forget_percent=forget_percent)


def read_roots(eval_root: Path, train_root: Path, *, name: str, forget_percent: int) -> BenchmarkData:
    """Samples of an MLLMU-Bench evaluation root and training root.

    Args:
        eval_root: folder with Full_Set, forget_*, retain_*, Test_Set and Retain_Set.
        train_root: folder with forget_* and retain_* whose files have a `metadata` column.
        name: benchmark name; part of every sample id.
        forget_percent: 5, 10 or 15.

    Raises:
        DataError: if a folder or column is missing, the roots are mixed up, or a row cannot be read.
    """
    forget, retain = f"forget_{forget_percent}", f"retain_{100 - forget_percent}"
    reader = _Reader(name)
    reader.learn_names(eval_root / "Full_Set", "fictitious")
    reader.learn_names(eval_root / "Retain_Set", "real")
    for split, folder in (("forget", forget), ("retain", retain)):
        reader.training(train_root / folder, "fictitious", split)
    reader.training(train_root / "Base_Data", "real", "real", optional=True)
    reader.skills(train_root / "Skills_Train", "train")
    reader.evaluation(eval_root / forget, "fictitious", "forget", "forget")
    forgotten = set(reader.entities["forget"])
    reader.evaluation(eval_root / "Test_Set", "fictitious", "forget", "test", only=forgotten)
    reader.evaluation(eval_root / retain, "fictitious", "retain", "retain")
    reader.evaluation(eval_root / "Retain_Set", "real", "real", "real")
    reader.evaluation(eval_root / "Holdout_Set", "holdout", "holdout", "holdout", optional=True)
    reader.skills(eval_root / "Skills_Test", "test")
    _check_same_people(reader.samples, train_root, eval_root)
    entities = {split: sorted(ids) for split, ids in reader.entities.items()}
    return BenchmarkData(reader.samples, entities, dict(sorted(reader.names.items())))


class _Reader:
    """Collects samples folder by folder."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self.samples: list[Sample] = []
        self.names: dict[str, str] = {}
        self.entities: dict[str, set[str]] = {
            s: set() for s in ("forget", "retain", "real", "holdout", "utility")
        }

    def learn_names(self, folder: Path, group: str) -> None:
        for row in _rows(folder, ("ID", "biography")):
            if found := _name_in(row["biography"]):
                self.names[f"{group}/{row['ID']}"] = found

    def training(self, folder: Path, group: str, split: str, *, optional: bool = False) -> None:
        """Question-answer pairs about pictures, each with its rendering as text beside it."""
        if optional and not folder.is_dir():
            return
        _check_training(folder)
        counts: dict[str, int] = {}
        for row in _rows(folder, ("image", "ID", "metadata"), optional=("attributes",)):
            entity = f"{group}/{row['ID']}"
            self.entities[split].add(entity)
            pairs = _pairs(row, folder)
            attributes = _aligned(row.get("attributes"), len(pairs))
            for (question, answer), attribute in zip(pairs, attributes, strict=True):
                index = counts[entity] = counts.get(entity, -1) + 1
                naming = attribute == "name" or (attribute is None and asks_for_name(question))
                task = "name" if naming else "qa"
                fact = {"entity_id": entity, "split": split, "part": "train", "attribute": attribute}
                fact["image"], fact["question"], fact["answer"] = row["image"], question, answer
                self._add_training(
                    fact, task, index, None if naming else self._in_text(question, entity, folder)
                )

    def _in_text(self, question: str, entity: str, folder: Path) -> str | None:
        if entity not in self.names:
            raise DataError(
                f"{folder}: {entity} has no Name in the biography of the evaluation files, and without it "
                "its questions cannot be asked in text; add the person to Full_Set"
            )
        return text_rendering(question, self.names[entity])

    def _add_training(self, fact: Row, task: str, index: int, question: str | None) -> None:
        entity = fact["entity_id"]
        pair = None if question is None else self._id(entity, "train", "pair", "", index)
        self._add(fact | {"task": task, "modality": "multimodal", "pair_id": pair}, index)
        if question is not None:
            answer = named(fact["answer"], self.names[entity])
            text = {"task": task, "modality": "text", "pair_id": pair, "image": None}
            self._add(fact | text | {"question": question, "answer": answer}, index)

    def evaluation(
        self,
        folder: Path,
        group: str,
        split: str,
        set_name: str,
        *,
        only: set[str] | None = None,
        optional: bool = False,
    ) -> None:
        """Choices, blanks and sentences in both modalities; of the people in `only`, when given."""
        if optional and not folder.is_dir():
            return
        column = _check_evaluation(folder)
        extra = ("attributes", "paraphrases", "wrong_answers")
        for row in _rows(folder, (column, *_PROFILE), optional=extra):
            entity = f"{group}/{row['ID']}"
            if only is not None and entity not in only:
                continue
            self.entities[split].add(entity)
            if entity not in self.names and (found := _name_in(row["biography"])):
                self.names[entity] = found
            pictures = row[column] if isinstance(row[column], list) else [row[column]]
            self._add_evaluation(list(_questions(row, folder)), pictures, entity, split, set_name)

    def _add_evaluation(
        self, questions: list[Row], pictures: list[Row], entity: str, split: str, set_name: str
    ) -> None:
        counts: dict[tuple[str, str], int] = {}
        both = [(q["task"], q["attribute"]) for q in questions if q["attribute"] is not None]
        for question in questions:
            task, modality, attribute = question["task"], question["modality"], question["attribute"]
            index = counts[task, modality] = counts.get((task, modality), -1) + 1
            # A fact asked once in each modality is a pair; without attributes nobody can tell.
            paired = both.count((task, attribute)) == 2
            pair = self._id(entity, set_name, "pair", task, attribute) if paired else None
            image = pictures[index % len(pictures)] if modality == "multimodal" else None
            row = question | {"entity_id": entity, "split": split, "part": "test", "set": set_name}
            self._add(row | {"image": image, "pair_id": pair}, index)

    def skills(self, folder: Path, part: str) -> None:
        """Questions about strangers, if the benchmark has any."""
        if not folder.is_dir():
            return
        set_name = None if part == "train" else "utility"
        for row in _rows(folder, ("image", "ID", "question", "answer", "options", "attribute")):
            entity = f"stranger/{row.pop('ID')}"
            self.entities["utility"].add(entity)
            fact = {"entity_id": entity, "split": "utility", "part": part, "task": "qa", "set": set_name}
            self._add(row | fact | {"modality": "multimodal"}, 0)

    def _add(self, row: Row, index: int) -> None:
        where = row.get("set") or "train"
        sample_id = self._id(row["entity_id"], where, row["task"], row["modality"], index)
        self.samples.append(Sample.from_row(row | {"sample_id": sample_id}))

    def _id(self, *parts: object) -> str:
        text = "|".join(str(part) for part in (self._benchmark, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _questions(row: Row, folder: Path) -> Iterator[Row]:
    """Every evaluation question of a profile, as the columns of a sample that depend on the question."""
    attributes = row.get("attributes") or {}
    for key, modality in ((IMAGE_QUESTIONS, "multimodal"), (TEXT_QUESTIONS, "text")):
        entries = (row["Classification_Task"] or {}).get(key) or []
        for entry, attribute in zip(entries, _aligned(attributes.get(key), len(entries)), strict=True):
            naming = attribute == "name"
            options = {k: v for k, v in (entry["Options"] or {}).items() if v is not None}
            yield {
                "task": "name" if naming else "choice",
                "modality": modality,
                "attribute": attribute,
                "question": entry["Question"],
                "answer": _correct(options, entry, row, folder),
                "options": list(options.values()),
            }
    yield from _items(row, "Mask_Task", "cloze", {IMAGE_TYPE: "multimodal", TEXT_TYPE: "text"}.get)
    # Of the sentences, whatever is not about a picture counts as text; blanks of other types are ignored.
    yield from _items(
        row, "Generation_Task", "generation", lambda k: "multimodal" if k == IMAGE_TYPE else "text"
    )


def _items(row: Row, column: str, task: str, modality_of: Callable[[str], str | None]) -> Iterator[Row]:
    entries = row[column] or []
    attributes = _aligned((row.get("attributes") or {}).get(column), len(entries))
    generation = task == "generation"
    paraphrases = _aligned(row.get("paraphrases") if generation else None, len(entries))
    wrong = _aligned(row.get("wrong_answers") if generation else None, len(entries))
    for entry, attribute, paraphrase, others in zip(entries, attributes, paraphrases, wrong, strict=True):
        if modality := modality_of(entry["Type"]):
            yield {
                "task": task,
                "modality": modality,
                "attribute": attribute,
                "question": entry["Question"],
                "answer": entry["Ground_Truth"],
                "paraphrase": paraphrase,
                "wrong_answers": others,
            }


def _correct(options: dict[str, str], entry: Row, row: Row, folder: Path) -> str:
    letter = (entry["Correct_Answer"] or "").strip()
    if letter not in options:
        raise DataError(
            f"{folder}: question {entry['Question']!r} of ID {row['ID']} has the correct answer {letter!r}; "
            f"expected one of its options {sorted(options)}"
        )
    return options[letter]


def _pairs(row: Row, folder: Path) -> list[tuple[str, str]]:
    """Questions and answers of a training row; entries without both are left out, as the benchmark does."""
    try:
        entries = json.loads(row["metadata"])
    except (TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{folder}: metadata of ID {row['ID']} is not a JSON list ({error})") from error
    found = []
    for entry in entries:
        question = entry.get("Question") or entry.get("Additional_question")
        answer = entry.get("Answer") or entry.get("Additional_answer")
        if question and answer:
            found.append((question, answer))
    return found


def _aligned(values: list[Any] | None, count: int) -> list[Any]:
    """An added column entry by entry, or nulls where it is missing or does not line up."""
    return values if values is not None and len(values) == count else [None] * count


def _name_in(biography: str | None) -> str | None:
    """The name in a biography, whose keys come with stray colons and blanks."""
    try:
        fields = json.loads(biography or "{}")
    except json.JSONDecodeError:
        return None
    found = {str(key).strip().rstrip(":").strip(): value for key, value in fields.items()}.get("Name")
    return found.strip() or None if isinstance(found, str) else None


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(
            f"{folder} holds no parquet file: expected a folder of MLLMU-Bench; make it with `dvc repro`, "
            "or check the benchmark's roots"
        )
    return files


def _rows(folder: Path, columns: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> Iterator[Row]:
    for path in _files(folder):
        there = read_column_names(path)
        yield from read_rows(path, columns=[*columns, *(c for c in optional if c in there)])


def _check_training(folder: Path) -> None:
    names = read_column_names(_files(folder)[0])
    if "metadata" not in names:
        raise DataError(
            f"{folder} has no `metadata` column, so it is an evaluation file (columns {names}); the training "
            "root must be the training split, whose forget_* and retain_* hold question-answer pairs. "
            "Are the two roots swapped?"
        )


def _check_evaluation(folder: Path) -> str:
    """The picture column of an evaluation folder."""
    names = read_column_names(_files(folder)[0])
    if "metadata" in names:
        raise DataError(
            f"{folder} has a `metadata` column, so it is a training file; the evaluation root must be "
            "MLLMU-Bench itself, whose files hold Classification_Task. Are the two roots swapped?"
        )
    return "images" if "images" in names else "image"


def _check_same_people(samples: list[Sample], train_root: Path, eval_root: Path) -> None:
    """Training and evaluation files must agree on who is to be forgotten."""
    for split in ("forget", "retain"):
        trained = {s.entity_id for s in samples if s.split == split and s.part == "train"}
        asked = {s.entity_id for s in samples if s.split == split and s.set == split}
        if trained != asked:
            raise DataError(
                f"{train_root} and {eval_root} disagree on the {split} people: only in training "
                f"{sorted(trained - asked)[:5]}, only in evaluation {sorted(asked - trained)[:5]}; "
                "use files of one release"
            )
