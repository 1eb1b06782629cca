"""Files of a benchmark of one's own: a table of questions about pictures of people, and the pictures.

The root is the table (csv, jsonl or parquet), or a folder that holds one table and the pictures it names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.parquet import read_column_names, read_rows
from efface.errors import DataError

Row = dict[str, Any]

PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp")
PATTERNS = ("*.csv", "*.jsonl", "*.parquet", *PICTURES, *(p.upper() for p in PICTURES))
"""Files to download of a root on the Hub."""

COLUMNS = ("image", "question", "answer", "person")
"""Columns every table has; `image` is a path beside the table or, in parquet, the picture itself."""
_KINDS = (".csv", ".jsonl", ".parquet")


def files_to_import(role: str, root: Path) -> list[Path]:
    """The table or tables of a root and the pictures they name, as far as they are there.

    Raises:
        DataError: if there is no table, or it lacks a column.
    """
    found = tables(root)
    base = root if root.is_dir() else root.parent
    named = {row["image"] for _, _, row in rows(found) if isinstance(row.get("image"), str)}
    pictures = [base / name for name in sorted(named) if inside(base, name) and (base / name).is_file()]
    return [*found, *pictures]


def tables(root: Path) -> list[Path]:
    """The table of a root; of parquet, all its parts.

    Raises:
        DataError: if there is none or more than one, or a column is missing.
    """
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in _KINDS)
    kinds = {file.suffix for file in files}
    if not files or not kinds <= set(_KINDS) or (len(files) > 1 and kinds != {".parquet"}):
        there = ", ".join(p.name for p in files[:5]) or "none"
        raise DataError(
            f"{root} holds no single table (found {there}): expected one csv or jsonl file, or parquet files "
            f"with the columns {', '.join(COLUMNS)}; set benchmark.roots.data to the table or its folder"
        )
    for file in files:
        names = _column_names(file)
        if missing := [name for name in COLUMNS if name not in names]:
            raise DataError(
                f"{file} lacks the columns {', '.join(missing)} (found {', '.join(names)}): expected "
                f"{', '.join(COLUMNS)}; rename or add them"
            )
    return files


def rows(files: list[Path]) -> Iterator[tuple[Path, int, Row]]:
    """File, row number in it (from 1) and row of every row, one at a time.

    Raises:
        DataError: if a file cannot be read.
    """
    for file in files:
        for number, row in enumerate(_READERS[file.suffix](file), start=1):
            yield file, number, row


def inside(base: Path, name: str) -> bool:
    """Whether a path named by a table stays inside its folder."""
    return (base / name).resolve().is_relative_to(base.resolve())


def _column_names(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return read_column_names(file)
    return list(next(iter(_READERS[file.suffix](file)), {}))


def _csv(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {key: value or None for key, value in row.items() if key is not None}


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}: line {number} is not JSON ({error}); correct the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}: line {number} is {row!r}: expected an object; correct the line")
            yield row


def _parquet(file: Path) -> Iterator[Row]:
    return read_rows(file, streaming=True)


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
