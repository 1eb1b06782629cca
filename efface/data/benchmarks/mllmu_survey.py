"""The first walk through MLLMU-Bench's files: who is in which split, and which rows cannot be used.

A person whose row in the forget or retain files cannot be used is left out of both roots, so that nobody is
asked about who was not taught. Nothing but ids, names and row numbers is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.data.benchmarks.mllmu_files import (
    check_evaluation,
    check_ratio,
    check_training,
    forget_folder,
    retain_folder,
    rows,
)
from efface.data.benchmarks.mllmu_rows import name_in, pairs_of
from efface.data.benchmarks.reading import SPLIT_NAMES, BadRows
from efface.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """A folder of training rows and whose they are."""

    folder: Path
    group: str
    split: str


@dataclass(frozen=True)
class Evaluation:
    """A folder of evaluation rows and whose they are."""

    folder: Path
    group: str
    split: str
    set_name: str
    only: frozenset[str] | None = None
    """The people to ask about; None: everybody in the folder."""


@dataclass
class Survey:
    """What the first walk found."""

    training: list[Training] = field(default_factory=list)
    evaluation: list[Evaluation] = field(default_factory=list)
    skills: dict[str, Path | None] = field(default_factory=dict)
    entities: dict[str, list[str]] = field(default_factory=dict)
    """Split to its people, without those left out."""
    names: dict[str, str] = field(default_factory=dict)
    people_out: set[str] = field(default_factory=set)
    rows_out: set[tuple[str, int]] = field(default_factory=set)
    pictures_out: dict[tuple[str, int], set[int]] = field(default_factory=dict)

    def leaves_out(self, file: Path, number: int, entity: str) -> bool:
        """Whether a row is not to be used."""
        return entity in self.people_out or (str(file), number) in self.rows_out

    def usable_pictures(self, file: Path, number: int, value: Row | list[Row]) -> list[Row]:
        """The pictures of a row that decode."""
        bad = self.pictures_out.get((str(file), number), set())
        return [p for i, p in enumerate(value if isinstance(value, list) else [value]) if i not in bad]


def survey(
    eval_root: Path,
    train_root: Path,
    percent: int,
    bad_rows: BadRows,
    *,
    asked: Collection[str] | None = None,
) -> Survey:
    """Walk through both roots.

    Args:
        eval_root: as in `read_roots`.
        train_root: likewise.
        percent: share to forget.
        bad_rows: what to do with rows that cannot be used.
        asked: entity ids of those asked about in the test set; None: the people of the forget folder.

    Raises:
        DataError: if a folder or column is missing, the roots are mixed up, they disagree on the people, or,
            unless bad rows are to be skipped, if a row cannot be used.
    """
    return _Surveyor(eval_root, train_root, percent, bad_rows, asked).walk()


class _Surveyor:
    def __init__(
        self,
        eval_root: Path,
        train_root: Path,
        percent: int,
        bad_rows: BadRows,
        asked: Collection[str] | None,
    ) -> None:
        check_ratio(train_root, percent)
        check_ratio(eval_root, percent)
        self._eval, self._train, self._bad = eval_root, train_root, bad_rows
        self._folders = {"forget": forget_folder(percent), "retain": retain_folder(percent)}
        self._named = asked
        self._found = Survey()
        self._people: dict[str, set[str]] = {split: set() for split in SPLIT_NAMES}
        self._taught: dict[str, set[str]] = {}
        self._asked: dict[str, set[str]] = {}
        self._whole: set[bytes] = set()

    def walk(self) -> Survey:
        found = self._found
        for folder, group in (("Full_Set", "fictitious"), ("Retain_Set", "real")):
            self._learn_names(self._eval / folder, group)
        found.training = [
            Training(self._train / self._folders[split], "fictitious", split) for split in self._folders
        ]
        found.training += [
            Training(folder, "real", "real") for folder in [self._train / "Base_Data"] if folder.is_dir()
        ]
        for training in found.training:
            self._survey_training(training)
        self._survey_sets()
        skills = {"train": self._train / "Skills_Train", "test": self._eval / "Skills_Test"}
        found.skills = {part: folder if folder.is_dir() else None for part, folder in skills.items()}
        for asked in filter(None, found.skills.values()):
            self._survey_skills(asked)
        self._cross_check()
        found.entities = {s: sorted(ids - found.people_out) for s, ids in self._people.items()}
        found.names = {e: n for e, n in sorted(found.names.items()) if e not in found.people_out}
        return found

    def _survey_sets(self) -> None:
        root, folders = self._eval, self._folders
        self._survey_evaluation(Evaluation(root / folders["forget"], "fictitious", "forget", "forget"))
        forgotten = frozenset(self._people["forget"] if self._named is None else self._named)
        self._survey_evaluation(Evaluation(root / "Test_Set", "fictitious", "forget", "unseen", forgotten))
        self._survey_evaluation(Evaluation(root / folders["retain"], "fictitious", "retain", "retain"))
        self._survey_evaluation(Evaluation(root / "Retain_Set", "real", "real", "real"))
        holdout = Evaluation(root / "Holdout_Set", "holdout", "holdout", "holdout")
        if holdout.folder.is_dir():
            self._survey_evaluation(holdout)

    def _learn_names(self, folder: Path, group: str) -> None:
        for file, number, row in rows(folder, ("ID", "biography")):
            if entity := self._entity(row, group, file, number):
                self._learn_name(entity, row, file)

    def _learn_name(self, entity: str, row: Row, file: Path) -> None:
        name, fault = name_in(row["biography"])
        if fault:
            self._leave_out(entity, file, f"ID {row['ID']}", fault, "correct the JSON")
        elif name:
            self._found.names.setdefault(entity, name)

    def _survey_training(self, part: Training) -> None:
        check_training(part.folder)
        taught: dict[str, set[bytes]] = {}
        for file, number, row in rows(part.folder, ("image", "ID", "metadata")):
            entity = self._entity(row, part.group, file, number)
            if entity is None:
                continue
            where = f"ID {row['ID']}"
            _, fault = pairs_of(row["metadata"])
            if fault:
                self._leave_out(entity, file, where, fault, "write a list of Question and Answer as JSON")
            elif not self._picture(row["image"], file, where):
                self._found.people_out.add(entity)
            else:
                key = hashlib.sha1(row["image"]["bytes"], usedforsecurity=False).digest()
                if key in taught.setdefault(entity, set()):
                    self._leave_row_out(file, number, where, "the same ID and picture a second time")
                taught[entity].add(key)
            self._people[part.split].add(entity)
            self._taught.setdefault(part.split, set()).add(entity)

    def _survey_evaluation(self, part: Evaluation) -> None:
        column = check_evaluation(part.folder)
        seen: set[str] = set()
        for file, number, row in rows(part.folder, (column, "ID", "biography")):
            entity = self._entity(row, part.group, file, number)
            if entity is None or (part.only is not None and entity not in part.only):
                continue
            where = f"ID {row['ID']}"
            if entity in seen:
                self._leave_row_out(file, number, where, "the same ID a second time")
                continue
            seen.add(entity)
            self._learn_name(entity, row, file)
            self._survey_pictures(row[column], file, number, where, entity)
            if part.only is None:  # the test set repeats people whom the folders have put into a split
                self._people[part.split].add(entity)
        if part.set_name in self._folders:
            self._asked[part.set_name] = seen
        self._found.evaluation.append(part)

    def _survey_pictures(self, value: Any, file: Path, number: int, where: str, entity: str) -> None:
        """Of several pictures, those that decode are used; a row without any cannot be used."""
        several = isinstance(value, list)
        pictures = value if several else [value]
        bad = {
            i
            for i, picture in enumerate(pictures)
            if not self._picture(picture, file, f"{where}, picture {i + 1}" if several else where)
        }
        self._found.pictures_out |= {(str(file), number): bad} if bad else {}
        if not pictures:
            self._leave_row_out(file, number, where, "the row has no picture")
        elif len(bad) == len(pictures) and several:
            self._found.rows_out.add((str(file), number))
        elif bad and not several:
            self._found.people_out.add(entity)

    def _survey_skills(self, folder: Path) -> None:
        for file, number, row in rows(folder, ("image", "ID")):
            entity = self._entity(row, "stranger", file, number)
            if entity is not None and self._picture(row["image"], file, f"ID {row['ID']}"):
                self._people["utility"].add(entity)
            else:
                self._found.rows_out.add((str(file), number))

    def _cross_check(self) -> None:
        """Nobody is both to be forgotten and to be kept, both roots know the same people, all have names."""
        found = self._found
        for entity in sorted(self._people["forget"] & self._people["retain"]):
            folders = " and ".join(self._folders.values())
            reason = f"{entity} is in both {folders}, so it is unclear whether to forget or to keep it"
            self._leave_out(entity, self._train, entity, reason, "take it out of one of them")
        for split in self._folders:
            taught, asked = self._taught.get(split, set()), self._asked.get(split, set())
            for entity in sorted((taught ^ asked) - found.people_out):
                self._disagree(split, entity, taught - found.people_out, asked - found.people_out)
        for part in found.training:
            for entity in sorted(self._taught.get(part.split, set()) - found.people_out - set(found.names)):
                reason = "no Name in the biography of the evaluation files, so nothing can be asked in text"
                self._leave_out(entity, part.folder, entity, reason, "add the person to Full_Set")

    def _disagree(self, split: str, entity: str, taught: set[str], asked: set[str]) -> None:
        if self._bad.policy == "stop":
            raise DataError(
                f"{self._train} and {self._eval} disagree on the {split} people: only in training "
                f"{sorted(taught - asked)[:5]}, only in evaluation {sorted(asked - taught)[:5]}; "
                "use files of one release"
            )
        only = "training" if entity in taught else "evaluation"
        self._leave_out(entity, self._train, entity, f"{split}, but only in {only}", "use one release")

    def _entity(self, row: Row, group: str, file: Path, number: int) -> str | None:
        identity = row["ID"]
        if isinstance(identity, str) and identity.strip():
            return f"{group}/{identity}"
        reason = f"ID is {identity!r}, expected text such as '042'"
        self._leave_row_out(file, number, f"row {number}", reason, "store IDs as strings, zeros in front")
        return None

    def _picture(self, picture: Any, file: Path, where: str) -> bool:
        encoded = picture.get("bytes") if isinstance(picture, dict) else None
        key = hashlib.sha1(encoded or b"", usedforsecurity=False).digest()
        if key in self._whole:
            return True
        if whole := self._bad.picture(encoded, file, where):
            self._whole.add(key)
        return whole

    def _leave_out(self, entity: str, file: Path, where: str, reason: str, remedy: str) -> None:
        self._bad.found(file, where, reason, remedy)
        self._found.people_out.add(entity)

    def _leave_row_out(
        self, file: Path, number: int, where: str, reason: str, remedy: str = "remove one of the rows"
    ) -> None:
        self._bad.found(file, where, reason, remedy)
        self._found.rows_out.add((str(file), number))
