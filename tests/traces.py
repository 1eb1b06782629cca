"""Finds what is left of a person in a folder: name, id, and pictures, also inside parquet tables."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def traces(folder: Path, words: Collection[str], pictures: Collection[bytes]) -> set[Path]:
    """Files that hold a word or a picture, also inside parquet tables; git's history aside."""
    result = set()
    for path in (p for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts):
        content = path.read_bytes()
        parts = [content, path.as_posix().encode()]
        if content[:4] == b"PAR1":
            parts += [repr(pq.read_table(path).to_pydict()).encode()]
            parts += [value for row in pictures_of(path) for value in row]
        if any(word.encode() in part for word in words for part in parts):
            result.add(path)
        if any(picture in part for picture in pictures for part in parts):
            result.add(path)
    return result


def pictures_of(path: Path) -> Iterator[list[bytes]]:
    """The encoded pictures in each row of a parquet file."""
    table = pq.read_table(path)
    columns = [table[name].to_pylist() for name in table.column_names if name in ("image", "images")]
    for cell in (cell for column in columns for cell in column if cell is not None):
        yield [picture["bytes"] for picture in (cell if isinstance(cell, list) else [cell])]
