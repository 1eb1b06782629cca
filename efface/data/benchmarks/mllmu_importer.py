"""MLLMU-Bench files as samples: the published benchmark and every benchmark written in its format.

The evaluation root is the benchmark itself, the training root its training split; both have the same folder
names. `Retain_Set` holds the real people, not the people to retain. People are joined by their ID string.
The files determine how many questions there are. A root may lack a share, but not one folder of it. Training
rows are the pairs of `metadata`, each also as text with the name in place of "this person"; evaluation rows
are the three tasks in both modalities. `Test_Set` is the set `unseen`, and its questions rotate through the
row's pictures. Folders that only some benchmarks have (Holdout_Set,
Base_Data, Skills_*, Language_*) are read where they exist.

The files are read twice: once for people, names and unusable rows, once for the samples. A person whose row
in the forget or retain files is unusable is left out of training and evaluation alike.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection, sample_id
from efface.data.benchmarks.mllmu_schema import IMAGE_QUESTIONS, IMAGE_TYPE, TEXT_QUESTIONS, TEXT_TYPE
from efface.data.names import asks_for_name, named, text_rendering
from efface.data.parquet import column_names, parquet_files, read_folder
from efface.data.samples import OF_FORGOTTEN, SPLITS, Sample
from efface.data.splits import SIDES
from efface.errors import DataError

Row = dict[str, Any]

PATTERNS = ("*.parquet",)
"""Files to download of a repository."""

PERCENTS = (5, 10, 15)
PROFILE_COLUMNS = ("ID", "biography", "Classification_Task", "Mask_Task", "Generation_Task")

_FIXED = {"eval": ("Full_Set", "Test_Set", "Retain_Set"), "train": ()}
_OPTIONAL = {
    "eval": ("Holdout_Set", "Perception_Test", "Skills_Test", "Language_Test"),
    "train": ("Base_Data", "Skills_Train", "Language_Train", "Strangers"),
}
_REPOSITORIES = {"eval": "datasets/MLLMMU/MLLMU-Bench", "train": "MLLMMU/baseline_train_split"}
_OTHER_SCHEMA = (
    "Perception_Test", "Skills_Test", "Skills_Train", "Language_Test", "Language_Train", "Strangers",
)  # fmt: skip
_ABILITIES = ("stranger", "language")
"""Namespaces of questions that are about no person of the benchmark."""


def files_to_import(role: str, root: Path) -> list[Path]:
    """The parquet files of a root to read, once their columns are checked.

    Args:
        role: `eval` or `train`.
        root: folder as downloaded from the Hub.

    Raises:
        DataError: if a folder is missing, or the root is the other one or not MLLMU-Bench's at all.
    """
    folders = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    pairs = [(f"forget_{percent}", f"retain_{100 - percent}") for percent in PERCENTS]
    complete = [name for pair in pairs if set(pair) <= folders for name in pair]
    missing = [name for name in _FIXED[role] if name not in folders]
    halves = [name for pair in pairs for name in pair if name not in folders and set(pair) & folders]
    if complete and role == "eval":
        picture_column(root / complete[0], role)  # a swapped root lacks folders too: say swapped first
    if missing or halves or not complete:
        lacking = missing + halves or ["forget_5 and retain_95 (or 10 and 90, 15 and 85)"]
        raise DataError(
            f"{root} lacks {', '.join(lacking)}: expected the {role} root of MLLMU-Bench "
            f"({_REPOSITORIES[role]}), its folders are {', '.join(sorted(folders)) or 'none'}; download all "
            f"of it and set the root {role} to the folder that holds these"
        )
    names = [*_FIXED[role], *complete, *(name for name in _OPTIONAL[role] if name in folders)]
    for name in names:
        if name not in _OTHER_SCHEMA:
            picture_column(root / name, role)
    return [file for name in names for file in parquet_files(root / name)]


def picture_column(folder: Path, role: str) -> str:
    """The picture column of a folder, `image` or `images`, once its columns are checked.

    Raises:
        DataError: if its files belong to the other root, or lack a column.
    """
    names = column_names(parquet_files(folder)[0])
    if (role == "train") != ("metadata" in names):
        has = "has a" if role == "eval" else "has no"
        raise DataError(
            f"{folder} {has} `metadata` column (columns {names}), so it is no folder of the {role} root "
            f"({_REPOSITORIES[role]}); are the two roots swapped?"
        )
    column = "images" if "images" in names else "image"
    expected = (column, "ID", "metadata") if role == "train" else (column, *PROFILE_COLUMNS)
    if missing := [name for name in expected if name not in names]:
        raise DataError(
            f"{folder} lacks the columns {', '.join(missing)} (its columns: {names}): expected a folder of "
            f"{_REPOSITORIES[role]}; correct the root {role}"
        )
    return column


def read_benchmark(root: Path, *, name: str, forget: ForgetSelection, bad_rows: BadRows) -> BenchmarkData:
    """Samples of `root/eval` and `root/train`.

    Args:
        root: folder of the benchmark.
        name: benchmark name; part of every sample id.
        forget: the share to forget, 5, 10 or 15 %, whose folders are read. The unseen set asks about
            all people who can be forgotten.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        DataError: if a folder or column is missing, the roots are mixed up, they disagree on the people, or a
            row cannot be used.
    """
    return _MllmuReader(root / "eval", root / "train", name, forget, bad_rows).read()


@dataclass(frozen=True)
class _Folder:
    """A folder of rows, and the people they belong to."""

    path: Path
    group: str
    """Namespace of the entity ids."""
    split: str
    set: str | None
    """None for training rows."""


class _MllmuReader:
    def __init__(
        self, eval_root: Path, train_root: Path, benchmark: str, forget: ForgetSelection, bad_rows: BadRows
    ) -> None:
        self._eval, self._train = eval_root, train_root
        self._id = functools.partial(sample_id, benchmark)
        self._forget, self._bad_rows = forget, bad_rows
        self._names: dict[str, str] = {}
        self._people: dict[str, set[str]] = {split: set() for split in SPLITS}
        self._excluded_people: set[str] = set()
        self._excluded_rows: set[tuple[Path, int]] = set()
        self._excluded_pictures: set[tuple[Path, int, int]] = set()
        self._whole_pictures: set[bytes] = set()

    def read(self) -> BenchmarkData:
        percent = self._forget.percent
        forget, retain = f"forget_{percent}", f"retain_{100 - percent}"
        for root in (self._train, self._eval):
            self._check_share(root, percent)
        for path, group in ((self._eval / "Full_Set", "fictitious"), (self._eval / "Retain_Set", "real")):
            for file, number, row in read_folder(path, ("ID", "biography")):
                self._learn_name(row, group, file, number)
        folders = [
            _Folder(self._train / forget, "fictitious", "forget", None),
            _Folder(self._train / retain, "fictitious", "retain", None),
            _Folder(self._train / "Base_Data", "real", "real", None),
            _Folder(self._train / "Skills_Train", "stranger", "utility", None),
            _Folder(self._train / "Language_Train", "language", "utility", None),
            _Folder(self._eval / forget, "fictitious", "forget", "forget"),
            _Folder(self._eval / retain, "fictitious", "retain", "retain"),
            _Folder(self._eval / "Test_Set", "fictitious", "forget", "unseen"),
            _Folder(self._eval / "Retain_Set", "real", "real", "real"),
            _Folder(self._eval / "Holdout_Set", "holdout", "holdout", "holdout"),
            _Folder(self._eval / "Perception_Test", "fictitious", "forget", "perception"),
            _Folder(self._eval / "Skills_Test", "stranger", "utility", "utility"),
            _Folder(self._eval / "Language_Test", "language", "utility", "utility"),
        ]
        optional = {*_OPTIONAL["eval"], *_OPTIONAL["train"]}
        folders = [f for f in folders if f.path.is_dir() or f.path.name not in optional]
        taught: dict[str, set[str]] = {}
        evaluated: dict[str, set[str]] = {}
        for folder in folders:
            if folder.group in _ABILITIES or folder.set == "perception":
                self._survey_abilities(folder)
            elif folder.set is None:
                taught[folder.split] = self._survey_training(folder)
            else:
                evaluated[folder.set] = self._survey_evaluation(folder)
        self._cross_check(taught, evaluated, (forget, retain))
        entities = {split: sorted(people - self._excluded_people) for split, people in self._people.items()}
        names = {e: name for e, name in sorted(self._names.items()) if e not in self._excluded_people}
        return BenchmarkData(entities, names, self._samples(folders))

    def _samples(self, folders: list[_Folder]) -> Iterator[Sample]:
        """Folder by folder, forget and retain people merged by id so that the order shows no share."""

        def place(folder: _Folder) -> object:
            sides = folder.split in SIDES and folder.set not in OF_FORGOTTEN
            return folder.set is None if sides else folder.path

        for _, group in itertools.groupby(folders, place):
            yield from heapq.merge(*map(self._folder_samples, group), key=lambda sample: sample.entity_id)

    def _folder_samples(self, folder: _Folder) -> Iterator[Sample]:
        if folder.group in _ABILITIES or folder.set == "perception":
            return self._ability_samples(folder)
        return self._training_samples(folder) if folder.set is None else self._evaluation_samples(folder)

    # First pass: people, names, and unusable rows.

    @property
    def _fictitious(self) -> set[str]:
        """All people who can be forgotten."""
        return self._people["forget"] | self._people["retain"]

    def _check_share(self, root: Path, percent: int) -> None:
        shares = [p for p in PERCENTS if (root / f"forget_{p}").is_dir()]
        if percent not in shares and any(root.glob("forget_*")):
            raise DataError(
                f"{root} has no folder forget_{percent}: its people to forget are given for the shares "
                f"{', '.join(f'{p / 100:g}' for p in shares)}; set forget_fraction to one of them"
            )

    def _entity(self, row: Row, group: str, file: Path, number: int) -> str | None:
        """The entity id of a row; None, and the row is reported, if its ID is not text."""
        identity = row["ID"]
        if isinstance(identity, str) and identity.strip():
            return f"{group}/{identity}"
        reason = f"ID is {identity!r}, expected text such as '042'"
        self._bad_rows.report(file, f"row {number}", reason, "store IDs as strings with leading zeros")
        self._excluded_rows.add((file, number))
        return None

    def _learn_name(self, row: Row, group: str, file: Path, number: int) -> str | None:
        """The entity id of a row, whose name is stored. The keys of a biography come with stray colons."""
        entity = self._entity(row, group, file, number)
        if entity is None:
            return None
        try:
            fields = json.loads(row["biography"] or "{}")
            reason = None if isinstance(fields, dict) else f"biography is not a JSON object: {fields!r}"
        except (TypeError, json.JSONDecodeError) as error:
            reason = f"biography is not JSON ({error})"
        if reason:
            self._exclude(entity, file, f"ID {row['ID']}", reason, "correct the JSON")
            return entity
        name = {str(key).strip().rstrip(":").strip(): value for key, value in fields.items()}.get("Name")
        if isinstance(name, str) and name.strip():
            self._names.setdefault(entity, name.strip())
        return entity

    def _survey_training(self, folder: _Folder) -> set[str]:
        """The people of a training folder."""
        picture_column(folder.path, "train")
        pictures: dict[str, set[bytes]] = {}
        for file, number, row in read_folder(folder.path, ("image", "ID", "metadata")):
            entity = self._entity(row, folder.group, file, number)
            if entity is None:
                continue
            self._people[folder.split].add(entity)
            taught, place = pictures.setdefault(entity, set()), f"ID {row['ID']}"
            _, reason = _pairs(row["metadata"])
            if reason:
                self._exclude(entity, file, place, reason, "write a list of Question and Answer as JSON")
            elif not self._accepts_picture(row["image"], file, place):
                self._excluded_people.add(entity)
            elif (key := _picture_key(row["image"])) in taught:
                reason = "the same ID and picture a second time"
                self._bad_rows.report(file, place, reason, "remove one of the rows")
                self._excluded_rows.add((file, number))
            else:
                taught.add(key)
        return set(pictures)

    def _survey_evaluation(self, folder: _Folder) -> set[str]:
        """The people of an evaluation folder."""
        column = picture_column(folder.path, "eval")
        people: set[str] = set()
        for file, number, row in read_folder(folder.path, (column, "ID", "biography")):
            if folder.set == "unseen" and f"{folder.group}/{row['ID']}" not in self._fictitious:
                continue
            entity, place = self._learn_name(row, folder.group, file, number), f"ID {row['ID']}"
            if entity is None:
                continue
            if entity in people:
                self._bad_rows.report(file, place, "the same ID a second time", "remove one of the rows")
                self._excluded_rows.add((file, number))
                continue
            people.add(entity)
            pictures = row[column] if column == "images" else [row[column]]
            if not pictures:
                self._bad_rows.report(file, place, "the row has no picture", "add one or remove the row")
            for i, picture in enumerate(pictures):
                which = f"{place}, picture {i + 1}" if column == "images" else place
                if not self._accepts_picture(picture, file, which):
                    self._excluded_pictures.add((file, number, i))
                    if column == "image":
                        self._excluded_people.add(entity)
            if all((file, number, i) in self._excluded_pictures for i in range(len(pictures))):
                self._excluded_rows.add((file, number))
        if folder.set != "unseen":  # it repeats people of the forget folder
            self._people[folder.split] |= people
        return people

    def _survey_abilities(self, folder: _Folder) -> None:
        for file, number, row in read_folder(folder.path, ("image", "ID")):
            entity = self._entity(row, folder.group, file, number)
            pictured = folder.group != "language"
            if entity is None or (
                pictured and not self._accepts_picture(row["image"], file, f"ID {row['ID']}")
            ):
                self._excluded_rows.add((file, number))
            elif folder.group in _ABILITIES:
                self._people["utility"].add(entity)

    def _cross_check(
        self, taught: dict[str, set[str]], evaluated: dict[str, set[str]], folders: tuple[str, str]
    ) -> None:
        """Check that forget and retain people are disjoint, both roots agree on them, and all have names."""
        for entity in sorted(self._people["forget"] & self._people["retain"]):
            reason = f"{entity} is in both {' and '.join(folders)}; every person belongs to one of them"
            self._exclude(entity, self._train, entity, reason, "take it out of one of them")
        for split in ("forget", "retain"):
            for entity in sorted((taught[split] ^ evaluated[split]) - self._excluded_people):
                root = self._train if entity in taught[split] else self._eval
                reason = f"one of the {split} people in {root} only; the two roots disagree"
                self._exclude(entity, self._train, entity, reason, "use files of one release")
        for split, people in taught.items():
            for entity in sorted(people - self._excluded_people - set(self._names)):
                reason = f"one of the {split} people without a Name in the biography of the evaluation files"
                self._exclude(entity, self._eval / "Full_Set", entity, reason, "add the person to Full_Set")

    def _accepts_picture(self, picture: Any, file: Path, place: str) -> bool:
        key = _picture_key(picture)
        if key not in self._whole_pictures:
            if not self._bad_rows.accepts_picture((picture or {}).get("bytes"), file, place):
                return False
            self._whole_pictures.add(key)
        return True

    def _exclude(self, entity: str, file: Path, place: str, reason: str, remedy: str) -> None:
        self._bad_rows.report(file, place, reason, remedy)
        self._excluded_people.add(entity)

    # Second pass: samples.

    def _usable(
        self, folder: _Folder, columns: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> Iterator[tuple[Path, int, Row, str]]:
        for file, number, row in read_folder(folder.path, columns, optional):
            entity = f"{folder.group}/{row['ID']}"
            if folder.set in OF_FORGOTTEN and entity not in self._fictitious:
                continue
            if entity not in self._excluded_people and (file, number) not in self._excluded_rows:
                yield file, number, row, entity

    def _training_samples(self, folder: _Folder) -> Iterator[Sample]:
        """Question-answer pairs about pictures, each with its text rendering."""
        counts: Counter[str] = Counter()
        for file, _, row, entity in self._usable(folder, ("image", "ID", "metadata"), ("attributes",)):
            pairs, _ = _pairs(row["metadata"])
            attributes = _aligned(row.get("attributes"), len(pairs))
            for (question, answer), attribute in zip(pairs, attributes, strict=True):
                index, name = counts[entity], self._names[entity]
                counts[entity] += 1
                naming = attribute == "name" or (attribute is None and asks_for_name(question))
                task = "name" if naming else "qa"
                written = None if naming else text_rendering(question, name)
                fact = {
                    "entity_id": entity,
                    "split": folder.split,
                    "part": "train",
                    "attribute": attribute,
                    "task": task,
                    "pair_id": None if written is None else self._id(entity, "train", "pair", "", index),
                }
                pictured = {
                    "modality": "multimodal",
                    "image": row["image"],
                    "question": question,
                    "answer": answer,
                }
                text = {"modality": "text", "question": written, "answer": named(answer, name)}
                for rendering in (pictured,) if written is None else (pictured, text):
                    key = self._id(entity, "train", task, rendering["modality"], index)
                    yield from self._accepted(fact | rendering | {"sample_id": key}, file, f"ID {row['ID']}")

    def _evaluation_samples(self, folder: _Folder) -> Iterator[Sample]:
        """Choices, blanks and sentences in both modalities."""
        column = picture_column(folder.path, "eval")
        added = ("attributes", "paraphrases", "wrong_answers")
        # Ids are hashed with the name of the folder without the share: test for Test_Set.
        set_key = {"unseen": "test", "forget": "seen", "retain": "seen"}.get(str(folder.set), folder.set)
        for file, number, row, entity in self._usable(folder, (column, *PROFILE_COLUMNS), added):
            pictures = row[column] if column == "images" else [row[column]]
            pictures = [p for i, p in enumerate(pictures) if (file, number, i) not in self._excluded_pictures]
            questions = list(self._questions(row, file))
            both = Counter((q["task"], q["attribute"]) for q in questions if q["attribute"] is not None)
            counts: Counter[tuple[str, str]] = Counter()
            for question in questions:
                task, modality, attribute = question["task"], question["modality"], question["attribute"]
                index = counts[task, modality]
                counts[task, modality] += 1
                # A fact asked once in each modality is a pair; without attributes there is no telling.
                paired = both[task, attribute] == 2
                sample = question | {
                    "sample_id": self._id(entity, set_key, task, modality, index),
                    "entity_id": entity,
                    "split": "retain" if entity in self._people["retain"] else folder.split,
                    "part": "test",
                    "set": folder.set,
                    "image": pictures[index % len(pictures)] if modality == "multimodal" else None,
                    "pair_id": self._id(entity, set_key, "pair", task, attribute) if paired else None,
                }
                yield from self._accepted(sample, file, f"ID {row['ID']}")

    def _questions(self, row: Row, file: Path) -> Iterator[Row]:
        """Every evaluation question of a profile, as the sample's columns that depend on the question."""
        attributes = row.get("attributes") or {}
        for key, modality in ((IMAGE_QUESTIONS, "multimodal"), (TEXT_QUESTIONS, "text")):
            entries = (row["Classification_Task"] or {}).get(key) or []
            for entry, attribute in zip(entries, _aligned(attributes.get(key), len(entries)), strict=True):
                # A choice may have fewer options than the columns A to D; the columns then hold null.
                options = {k: v for k, v in (entry["Options"] or {}).items() if v is not None}
                letter = (entry["Correct_Answer"] or "").strip().rstrip(".)").upper()
                if letter not in options:
                    place = f"ID {row['ID']}, question {entry['Question']!r}"
                    reason = (
                        f"the correct answer {entry['Correct_Answer']!r} is none of the options {options}"
                    )
                    self._bad_rows.report(file, place, reason, "correct the letter or add the option")
                    continue
                yield {
                    "task": "name" if attribute == "name" else "choice",
                    "modality": modality,
                    "attribute": attribute,
                    "question": entry["Question"],
                    "answer": options[letter],
                    "options": list(options.values()),
                }
        for column, task in (("Mask_Task", "cloze"), ("Generation_Task", "generation")):
            entries = row[column] or []
            added = [
                row.get(name) if task == "generation" else None for name in ("paraphrases", "wrong_answers")
            ]
            columns = (_aligned(values, len(entries)) for values in (attributes.get(column), *added))
            for entry, attribute, paraphrase, wrong_answers in zip(entries, *columns, strict=True):
                # Sentences that are not about a picture count as text; other blanks are ignored.
                if task == "cloze" and entry["Type"] not in (IMAGE_TYPE, TEXT_TYPE):
                    continue
                yield {
                    "task": task,
                    "modality": "multimodal" if entry["Type"] == IMAGE_TYPE else "text",
                    "attribute": attribute,
                    "question": entry["Question"],
                    "answer": entry["Ground_Truth"],
                    "paraphrase": paraphrase,
                    "wrong_answers": wrong_answers,
                }

    def _ability_samples(self, folder: _Folder) -> Iterator[Sample]:
        """Questions about what pictures show, text questions about the world, sentences to continue."""
        columns = ("image", "ID", "question", "answer", "options", "attribute")
        counts: Counter[str] = Counter()
        for file, _, row, entity in self._usable(folder, columns):
            del row["ID"]
            task = "generation" if row["attribute"] == "sentence" else "qa"
            modality = "text" if folder.group == "language" else "multimodal"
            split = "retain" if entity in self._people["retain"] else folder.split
            sample = row | {
                "sample_id": self._id(entity, folder.set or "train", task, modality, counts[entity]),
                "entity_id": entity,
                "split": split,
                "part": "train" if folder.set is None else "test",
                "modality": modality,
                "task": task,
                "set": folder.set,
            }
            counts[entity] += 1
            yield from self._accepted(sample, file, entity)

    def _accepted(self, row: Row, file: Path, place: str) -> Iterator[Sample]:
        sample = Sample.from_row(row)
        if self._bad_rows.accepts(sample, file, place):
            yield sample


def _pairs(metadata: str | None) -> tuple[list[tuple[str, str]], str | None]:
    """Questions and answers of a training row, and what is wrong with them (None if nothing).

    Entries hold a pair under `Question` and `Answer`, or under `Additional_question` and `Additional_answer`,
    or both. Entries without a complete pair are left out, as in the benchmark's own loaders.
    """
    try:
        entries = json.loads(metadata or "")
    except (TypeError, json.JSONDecodeError) as error:
        return [], f"metadata is not JSON ({error})"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], "metadata is not a JSON list of question-answer pairs"
    pairs = []
    for entry in entries:
        for keys in (("Question", "Answer"), ("Additional_question", "Additional_answer")):
            question, answer = (entry.get(key) for key in keys)
            if not question or not answer:
                continue
            if not isinstance(question, str) or not isinstance(answer, str):
                return [], f"metadata has a pair that is not text: {question!r}, {answer!r}"
            pairs.append((question, answer))
    return pairs, None if pairs else "metadata holds no question with its answer"


def _aligned(values: list[Any] | None, count: int) -> list[Any]:
    """An added column entry by entry, or nulls if it is missing or has another length."""
    return values if values is not None and len(values) == count else [None] * count


def _picture_key(picture: Any) -> bytes:
    return hashlib.sha1((picture or {}).get("bytes") or b"", usedforsecurity=False).digest()
