"""MLLMU-Bench files as samples: the published benchmark and every benchmark written in its format.

People are joined by their ID string. Counts of questions are whatever the files hold. Folders that only some
benchmarks have (Holdout_Set, Base_Data, Skills_Train, Skills_Test) are read when they are there. The files
are walked through twice: once to learn who there is and what cannot be used, once to hand out the samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.benchmarks.mllmu_files import PROFILE_COLUMNS, check_evaluation, rows
from efface.data.benchmarks.mllmu_rows import aligned, pairs_of, questions_of
from efface.data.benchmarks.mllmu_survey import Evaluation, Survey, Training, survey
from efface.data.benchmarks.reading import BadRows, BenchmarkData, Forgetting, sample_id
from efface.data.samples import Sample, asks_for_name, named, text_rendering

Row = dict[str, Any]


def read_benchmark(root: Path, *, name: str, forget: Forgetting, bad_rows: BadRows) -> BenchmarkData:
    """Samples of `root/eval` and `root/train`.

    Args:
        root: folder of the benchmark.
        name: benchmark name; part of every sample id.
        forget: the share to forget, 5, 10 or 15 %: whose folders are read; and who is asked about in the
            test set, if not the people that share stands for.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        DataError: if a folder or column is missing, the roots are mixed up, or a row cannot be used.
    """
    return read_roots(root / "eval", root / "train", name=name, forget=forget, bad_rows=bad_rows)


def read_roots(
    eval_root: Path, train_root: Path, *, name: str, forget: Forgetting, bad_rows: BadRows
) -> BenchmarkData:
    """Samples of an MLLMU-Bench evaluation root and training root.

    Args:
        eval_root: folder with Full_Set, forget_*, retain_*, Test_Set and Retain_Set.
        train_root: folder with forget_* and retain_* whose files have a `metadata` column.
        name: benchmark name; part of every sample id.
        forget: the share to forget: 5, 10 or 15 %.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        DataError: as `read_benchmark`.
    """
    found = survey(eval_root, train_root, forget.percent, bad_rows, asked=forget.people)
    reader = _Reader(name, found, bad_rows)
    return BenchmarkData(found.entities, found.names, reader.samples())


class _Reader:
    """Hands out the samples folder by folder, without the people and rows that the survey left out."""

    def __init__(self, benchmark: str, found: Survey, bad_rows: BadRows) -> None:
        self._id = functools.partial(sample_id, benchmark)
        self._found, self._bad = found, bad_rows

    def samples(self) -> Iterator[Sample]:
        for training in self._found.training:
            yield from self._training(training)
        yield from self._skills(self._found.skills["train"], "train")
        for evaluation in self._found.evaluation:
            yield from self._evaluation(evaluation)
        yield from self._skills(self._found.skills["test"], "test")

    def _training(self, part: Training) -> Iterator[Sample]:
        """Question-answer pairs about pictures, each with its rendering as text beside it."""
        counts: dict[str, int] = {}
        for file, number, row in rows(part.folder, ("image", "ID", "metadata"), optional=("attributes",)):
            entity = f"{part.group}/{row['ID']}"
            if self._found.leaves_out(file, number, entity):
                continue
            pairs, _ = pairs_of(row["metadata"])
            attributes = aligned(row.get("attributes"), len(pairs))
            for (question, answer), attribute in zip(pairs, attributes, strict=True):
                index = counts[entity] = counts.get(entity, -1) + 1
                fact = {"entity_id": entity, "split": part.split, "part": "train", "attribute": attribute}
                fact |= {"image": row["image"], "question": question, "answer": answer}
                yield from self._accepted(self._renderings(fact, index), file, f"ID {row['ID']}")

    def _renderings(self, fact: Row, index: int) -> Iterator[Row]:
        entity, question = fact["entity_id"], fact["question"]
        asks_name = fact["attribute"] is None and asks_for_name(question)
        naming = fact["attribute"] == "name" or asks_name
        task = "name" if naming else "qa"
        name = self._found.names[entity]
        written = None if naming else text_rendering(question, name)
        pair = None if written is None else self._id(entity, "train", "pair", "", index)
        ids = {m: self._id(entity, "train", task, m, index) for m in ("multimodal", "text")}
        common = fact | {"task": task, "pair_id": pair}
        yield common | {"modality": "multimodal", "sample_id": ids["multimodal"]}
        if written is not None:
            text = {"modality": "text", "image": None, "question": written}
            yield common | text | {"answer": named(fact["answer"], name), "sample_id": ids["text"]}

    def _evaluation(self, part: Evaluation) -> Iterator[Sample]:
        """Choices, blanks and sentences in both modalities."""
        column = check_evaluation(part.folder)
        extra = ("attributes", "paraphrases", "wrong_answers")
        for file, number, row in rows(part.folder, (column, *PROFILE_COLUMNS), optional=extra):
            entity = f"{part.group}/{row['ID']}"
            if part.only is not None and entity not in part.only:
                continue
            if self._found.leaves_out(file, number, entity):
                continue
            pictures = self._found.usable_pictures(file, number, row[column])
            found = questions_of(row, self._bad, file)
            person = {"entity_id": entity, "split": part.split, "part": "test", "set": part.set_name}
            asked = self._asked(list(found), pictures, person)
            yield from self._accepted(asked, file, f"ID {row['ID']}")

    def _asked(self, questions: list[Row], pictures: list[Row], person: Row) -> Iterator[Row]:
        counts: dict[tuple[str, str], int] = {}
        # Ids are hashed with the name of the folder: test for Test_Set.
        entity, set_name = person["entity_id"], {"unseen": "test"}.get(person["set"], person["set"])
        both = [(q["task"], q["attribute"]) for q in questions if q["attribute"] is not None]
        for question in questions:
            task, modality, attribute = question["task"], question["modality"], question["attribute"]
            index = counts[task, modality] = counts.get((task, modality), -1) + 1
            # A fact asked once in each modality is a pair; without attributes nobody can tell.
            paired = both.count((task, attribute)) == 2
            pair = self._id(entity, set_name, "pair", task, attribute) if paired else None
            image = pictures[index % len(pictures)] if modality == "multimodal" else None
            identity = self._id(entity, set_name, task, modality, index)
            yield question | person | {"image": image, "pair_id": pair, "sample_id": identity}

    def _skills(self, folder: Path | None, part: str) -> Iterator[Sample]:
        """Questions about strangers, if the benchmark has any."""
        if folder is None:
            return
        set_name = None if part == "train" else "utility"
        columns = ("image", "ID", "question", "answer", "options", "attribute")
        for file, number, row in rows(folder, columns):
            entity = f"stranger/{row['ID']}"
            if self._found.leaves_out(file, number, entity):
                continue
            del row["ID"]
            fact = {"entity_id": entity, "split": "utility", "part": part, "task": "qa", "set": set_name}
            fact["sample_id"] = self._id(entity, set_name or "train", "qa", "multimodal", 0)
            yield from self._accepted(iter([row | fact | {"modality": "multimodal"}]), file, entity)

    def _accepted(self, found: Iterator[Row], file: Path, row: str) -> Iterator[Sample]:
        for each in found:
            sample = Sample.from_row(each)
            if self._bad.accepts(sample, file, row):
                yield sample
