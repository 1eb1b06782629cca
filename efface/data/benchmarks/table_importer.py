"""A user's table as samples: rows of picture, question, answer and person; CSV, JSONL, parquet, Arrow.

Every row is a training fact, with its text rendering if it has one. A `part` column (train or test) says
which rows the evaluation asks; without it the evaluation asks the training facts. CSV and JSON lines are read
row by row, because `datasets` and pandas fill or drop cells that do not fit their columns.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image

from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection, sample_id
from efface.data.names import asks_for_name, named, names_no_person, similarity_key, text_rendering
from efface.data.parquet import column_names, read_parquet
from efface.data.samples import SPLITS, Sample
from efface.errors import DataError

Row = dict[str, Any]

PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif", "*.bmp", "*.tif", "*.tiff")
PATTERNS = ("*.csv", "*.jsonl", "*.parquet", "*.arrow", *PICTURES, *(p.upper() for p in PICTURES))
"""Files to download of a repository."""

COLUMNS = ("question", "answer", "person")
"""Columns that every table has; `image`, a path beside the table or, in parquet, the picture, is optional."""
_TEXTS = (*COLUMNS, "name", "part", "attribute", "paraphrase")
_LISTS = ("options", "wrong_answers")
_SPELLINGS = {similarity_key(column): column for column in (*_TEXTS, *_LISTS, "image", "file_name")}
_MISSING = ("nan", "NaN", "none", "None", "null", "NULL", "NA", "N/A", "#N/A", "<NA>", "NaT", "undefined")
"""What programs write into a table for a missing value."""
_KINDS = (".csv", ".jsonl", ".parquet", ".arrow")
_PLACEHOLDER = re.compile(r"^(?:\s*<image>)+\s*|\s*(?:<image>\s*)+$")
_STREAM = 22


def files_to_import(role: str, root: Path) -> list[Path]:
    """The table or tables of a root, and the pictures they refer to.

    Raises:
        DataError: if there is no table, or it lacks a column.
    """
    files = tables(root)
    base = root if root.is_dir() else root.parent
    rows = (row for file in files for row in _rows(file) if not isinstance(row, str))
    paths = {_path(base, row["image"]) for row in rows if isinstance(row.get("image"), str)}
    return [*files, *sorted(path for path in paths if path is not None and os.path.isfile(path))]


def tables(root: Path) -> list[Path]:
    """The table of a root, which is a file or a folder that holds one; for parquet, all its parts.

    Raises:
        DataError: if there is none or more than one, or a column is missing.
    """
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if _kind(p) in _KINDS)
    kinds = {_kind(file) for file in files}
    if not files or not kinds <= set(_KINDS) or (len(files) > 1 and kinds not in ({".parquet"}, {".arrow"})):
        names = ", ".join(p.name for p in files[:5]) or "none"
        raise DataError(
            f"{root} does not hold a single table (tables: {names}): expected one csv or jsonl file, or "
            f"parquet or arrow files, with the columns {', '.join(COLUMNS)}; set the root to the table or "
            "its folder"
        )
    for file in files:
        if _kind(file) == ".parquet":
            columns = column_names(file)
        elif _kind(file) == ".arrow":
            columns = _arrow(file).column_names
        else:
            rows = (row for row in _rows(file) if not isinstance(row, str))
            columns = list(dict.fromkeys(name for row in rows for name in row))
            if not columns:
                raise DataError(f"{file} has no readable row; write one row per question")
        present = {*columns, *(["file_name"] if "image" in columns else [])}
        if otherwise := {c: n for c in columns if (n := _meant(c)) is not None and n not in present}:
            spelt = ", ".join(f"{column!a} for {name}" for column, name in otherwise.items())
            raise DataError(f"{file} has columns spelt otherwise than expected: {spelt}; rename them")
        if missing := [name for name in COLUMNS if name not in columns]:
            raise DataError(
                f"{file} lacks the columns {', '.join(missing)} (its columns: {', '.join(columns)}): "
                f"expected {', '.join(COLUMNS)}; rename or add them, and separate the cells of csv by commas"
            )
    return files


def _kind(file: Path) -> str:
    return file.suffix.lower()


def _meant(column: str) -> str | None:
    """The column whose name differs from this one only in case, accents, punctuation or a plural s."""
    key = similarity_key(column)
    return next((_SPELLINGS[k] for k in (key, key.removesuffix("s"), f"{key}s") if k in _SPELLINGS), None)


def _path(base: Path, name: str) -> Path | None:
    """The file that a table refers to, if its path stays in the folder; links in it may lead anywhere."""
    path = os.path.normpath(base / name)
    return Path(path) if Path(path).is_relative_to(os.path.normpath(base)) else None


def read_benchmark(root: Path, *, name: str, forget: ForgetSelection, bad_rows: BadRows) -> BenchmarkData:
    """Samples of the table in `root/data`.

    Args:
        root: folder of the benchmark.
        name: benchmark name; part of every sample id.
        forget: the share to forget, drawn from its seed.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        DataError: if the table or a column is missing, or a row cannot be used.
    """
    return _TableReader(root / "data", name, forget, bad_rows).read()


class _TableReader:
    def __init__(self, base: Path, benchmark: str, forget: ForgetSelection, bad_rows: BadRows) -> None:
        self._base, self._files = base, tables(base)
        self._id = functools.partial(sample_id, benchmark)
        self._forget, self._bad_rows = forget, bad_rows
        self._excluded: set[tuple[Path, int]] = set()
        self._names: dict[str, str] = {}
        self._splits: dict[str, str] = {}

    def read(self) -> BenchmarkData:
        people = sorted(self._survey())
        names = {f"person/{person}": name for person, name in sorted(self._names.items())}
        count = max(1, round(self._forget.fraction * len(people)))
        rng = np.random.default_rng([self._forget.seed, _STREAM])
        forget = {people[i] for i in rng.permutation(len(people))[:count]}
        self._splits = {p: "forget" if p in forget else "retain" for p in people}
        entities: dict[str, list[str]] = {split: [] for split in SPLITS}
        for person in people:
            entities[self._splits[person]].append(f"person/{person}")
        return BenchmarkData(entities, names, self._samples())

    def _rows(self) -> Iterator[tuple[Path, int, Row | str]]:
        for file in self._files:
            for number, row in enumerate(_rows(file), start=1):
                yield file, number, row

    @functools.cached_property
    def _pictured(self) -> bool:
        """Whether any row has a picture, so that one without may have lost it."""
        return any(not isinstance(row, str) and row.get("image") is not None for _, _, row in self._rows())

    def _survey(self) -> set[str]:
        """The people of the usable rows; their names are stored."""
        people: set[str] = set()
        for file, number, row in self._rows():
            if not self._accepts(row, file, number) or isinstance(row, str):
                self._excluded.add((file, number))
                continue
            person = _text(row["person"])
            people.add(person)
            # A person given by name needs no name column; a number is not a name.
            if name := _text(row.get("name")) or (person if any(map(str.isalpha, person)) else ""):
                self._names.setdefault(person, name)
        return people

    def _accepts(self, row: Row | str, file: Path, number: int) -> bool:
        reason = row if isinstance(row, str) else self._fault(row)
        if reason:
            self._bad_rows.report(file, f"row {number}", reason, "correct the row")
            return False
        if isinstance(row, str) or row.get("image") is None:
            return True
        place = f"row {number}, person {_text(row['person'])}"
        return self._bad_rows.accepts_picture(self._encoded(row), file, place)

    def _fault(self, row: Row) -> str | None:
        for column in _TEXTS:
            value = row.get(column)
            if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
                return f"{column} is {value!r} ({type(value).__name__}); expected text"
            if any("\ud800" <= c <= "\udfff" for c in _text(value)):
                return f"{column} holds half a character (a lone surrogate): {value!r}"
            if control := [c for c in _text(value) if unicodedata.category(c) == "Cc" and c not in "\t\n\r"]:
                return f"{column} holds the control character {control[0]!r}: {value!r}"
            if column in ("person", "name") and value in _MISSING:
                return f"{column} is {value!r}, which stands for a missing value; expected a person"
        for column in COLUMNS:
            if not _text(row.get(column)):
                return f"empty {column}; expected some text"
        for column in _LISTS:
            values = row.get(column)
            if isinstance(values, str):
                try:
                    values = json.loads(values)
                except json.JSONDecodeError:
                    return f"{column} is {values!r}; expected a list of texts, in csv as JSON"
            if values is not None and not (
                isinstance(values, list) and all(isinstance(v, str) for v in values)
            ):
                return f"{column} is {values!r}; expected a list of texts"
        if _text(row.get("part")) not in ("", "train", "test"):
            return f"part is {row['part']!r}; expected train or test"
        person, name = _text(row["person"]), _text(row.get("name"))
        if name and self._names.get(person, name) != name:
            return f"person {person} has the names {self._names[person]!r} and {name!r}; expected one"
        image = row.get("image")
        if not isinstance(image, (str, bytes, dict, type(None))):
            return f"image is {image!r} ({type(image).__name__}); expected a path, or in parquet a picture"
        if isinstance(image, str):
            path = _path(self._base, image)
            if path is None:
                return f"the picture {image} lies outside the folder of the table; expected a path in it"
            if not os.path.isfile(path):  # also false for what is not a path, such as an encoded picture
                return f"the picture {image} does not exist in the folder of the table"
        if image is None and _PLACEHOLDER.search(_text(row["question"])):
            return "the question has the placeholder <image>, and the row has no picture"
        if image is None and self._pictured and names_no_person(_text(row["question"]), name or person):
            return (
                "the question is about `this person`, and the row, unlike others, has no picture; expected "
                "one, or the name"
            )
        if row.get("options") is not None and _text(row["answer"]) not in _list(row["options"]):
            return f"the answer {row['answer']!r} is none of the options {_list(row['options'])}"
        return None

    def _encoded(self, row: Row) -> bytes | None:
        image = row.get("image")
        if isinstance(image, str):
            path = _path(self._base, image)
            return None if path is None else path.read_bytes()
        encoded = image.get("bytes") if isinstance(image, dict) else image
        return encoded if isinstance(encoded, bytes) else None

    def _samples(self) -> Iterator[Sample]:
        for part in ("train", "test"):
            counts: dict[str, int] = {}
            for file, number, row in self._rows():
                if isinstance(row, str) or (file, number) in self._excluded:
                    continue
                if _text(row.get("part")) not in ("", part):
                    continue
                person = _text(row["person"])
                index = counts[person] = counts.get(person, -1) + 1
                for rendering in self._renderings(row, person, part, index):
                    sample = Sample.from_row(rendering)
                    if self._bad_rows.accepts(sample, file, f"row {number}"):
                        yield sample

    def _renderings(self, row: Row, person: str, part: str, index: int) -> Iterator[Row]:
        """The row itself, and its text rendering if the picture question can be asked by name."""
        entity, split, encoded = f"person/{person}", self._splits[person], self._encoded(row)
        question, answer = _PLACEHOLDER.sub("", _text(row["question"])), _text(row["answer"])
        options = None if row.get("options") is None else _list(row["options"])
        wrong_answers = None if row.get("wrong_answers") is None else _list(row["wrong_answers"])
        naming, name = asks_for_name(question), self._names.get(person)
        task = "name" if naming else "qa" if options is None else "choice"
        modality = "text" if encoded is None else "multimodal"
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
            "wrong_answers": wrong_answers,
            "pair_id": None if written is None else self._id(entity, part, "pair", index),
        }
        first = {"modality": modality, "image": encoded, "question": question, "answer": answer}
        yield common | first | {"sample_id": self._id(entity, part, task, modality, index)}
        if written is not None and name is not None:
            text: Row = {"modality": "text", "question": written, "answer": named(answer, name)}
            if options is not None:
                text["options"] = [named(option, name) for option in options]
            # Its own number: a row may be in text by itself.
            yield common | text | {"sample_id": self._id(entity, part, task, "text", "rendering", index)}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _list(value: list[str] | str) -> list[str]:
    """A list, which csv holds as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _rows(file: Path) -> Iterator[Row | str]:
    """The rows of a table; an unreadable row is replaced by what is wrong with it."""
    readers: dict[str, Callable[[Path], Iterable[Row | str]]] = {
        ".parquet": read_parquet,
        ".arrow": _arrow,
        ".csv": _csv_rows,
        ".jsonl": _json_rows,
    }
    for row in readers[_kind(file)](file):
        if isinstance(row, str) or not ("image" in row or "file_name" in row):
            yield row
            continue
        image = row.get("image", row.get("file_name"))  # its name in a picture folder of `datasets`
        if isinstance(image, dict) and not image.get("bytes") and image.get("path"):
            image = image["path"]  # `datasets` wrote the picture's path, not the picture
        yield {**row, "image": image.strip() or None if isinstance(image, str) else image}


def _arrow(file: Path) -> Dataset:
    """A table that `datasets` saved to disk, its pictures encoded."""
    try:
        dataset = Dataset.from_file(str(file))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged ({str(error).splitlines()[0]}); save it again") from error
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def _lines(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file}: line {number} is not UTF-8 (byte {line[error.start]:#04x}); save the file as "
                    "UTF-8"
                ) from error


def _csv_rows(file: Path) -> Iterator[Row | str]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_lines(file), strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        if len(set(columns)) < len(columns):
            raise DataError(f"{file}: row 0, the header, names a column twice: {columns}; rename one")
        for cells in filter(None, reader):
            if len(cells) == len(columns):
                yield {column: cell or None for column, cell in zip(columns, cells, strict=True)}
            else:
                yield (
                    f"{len(cells)} cells for the {len(columns)} columns {', '.join(columns)}, from "
                    f"{cells[:1]}; expected one cell per column, and quotes around a cell that holds a comma"
                )
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.line_num} is not csv ({error}); correct the line") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"duplicate key in {[key for key, _ in pairs]}")
    return row


def _json_rows(file: Path) -> Iterator[Row | str]:
    for line in filter(str.strip, _lines(file)):
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            yield f"not JSON ({error}); expected one object per line"
            continue
        yield row if isinstance(row, dict) else f"{row!r} is not a JSON object; expected one object per line"
