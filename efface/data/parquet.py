"""Parquet files whose bytes depend on their content only, readable by pyarrow and by Hugging Face `datasets`.

A picture is a struct of its encoded bytes and a path, as `datasets` stores it. Equal pictures are stored once
per row group and come back as one shared object.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from efface.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_BATCH_ROWS, _STREAMED_ROWS = 512, 16
_BUFFER_BYTES = 1 << 20  # read at a time when streaming, in place of a whole column of a row group
_GROUP_BYTES = 1 << 26
"""Bytes of pictures, repeats counted, that close a row group: one array may hold 2 GiB, memory less."""
# A dictionary page this large lets every picture of a row group be stored once, however often rows repeat it.
_DICTIONARY_BYTES = 1 << 30
_RESTORE = "restore it with `dvc checkout`, or rebuild it with `dvc repro`"


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, schema: pa.Schema) -> None:
    """Write `rows` as a parquet file that `datasets` loads with its Image features.

    Rows are taken as they come and written in groups, so a generator's pictures are never all in memory.
    Missing keys become null; keys outside the schema are an error, so no column is lost by a typo.

    Raises:
        DataError: if a row has an unknown key or a value of the wrong type.
    """
    import pyarrow.parquet as pq

    layout = schema.with_metadata(_huggingface_metadata(schema))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = pq.ParquetWriter(
        path,
        layout,
        compression="zstd",
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        write_page_checksum=True,  # so that a flipped byte is found when read
    )
    with writer:
        for group in _groups(rows, path, schema):
            writer.write_table(_table(group, path, layout))


def _groups(
    rows: Iterable[Mapping[str, Any]], path: Path, schema: pa.Schema
) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in groups of bounded size, at least one group."""
    known = set(schema.names)
    group: list[Mapping[str, Any]] = []
    size = groups = 0
    for number, row in enumerate(rows):
        if unknown := sorted(set(row) - known):
            raise DataError(
                f"row {number} for {path.name} has unknown columns {unknown}; known: {schema.names}"
            )
        group.append(row)
        size += sum(len(picture["bytes"]) for picture in _pictures(row))
        if size >= _GROUP_BYTES:
            yield group
            group, size, groups = [], 0, groups + 1
    if group or not groups:
        yield group


def _table(rows: Sequence[Mapping[str, Any]], path: Path, layout: pa.Schema) -> pa.Table:
    try:
        columns = [pa.array([row.get(f.name) for row in rows], type=f.type) for f in layout]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"cannot write {path.name}: a value does not fit its column ({error})") from error
    return pa.table(columns, schema=layout)


def read_rows(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    streaming: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, in order, as plain dictionaries.

    Args:
        path: the file.
        columns: columns that must be there; they alone are read. All columns when None.
        where: keep rows whose column holds one of the values; row groups without any are skipped.
        streaming: hold the pictures of a few rows at a time only; equal pictures further apart are then
            separate objects.

    Raises:
        DataError: if the file is missing, damaged, or lacks a column.
    """
    shared: dict[bytes, bytes] = {}
    size = _STREAMED_ROWS if streaming else _BATCH_ROWS
    with _opened(path, buffered=_BUFFER_BYTES if streaming else 0) as file:
        names = file.schema_arrow.names
        if missing := [c for c in [*(columns or ()), *(where or ())] if c not in names]:
            raise DataError(
                f"{path} has no column {', '.join(missing)}: expected {list(columns or ())}, "
                f"found {names}; {_RESTORE}"
            )
        groups = [g for g in range(file.num_row_groups) if _may_match(file.metadata.row_group(g), where)]
        for batch in file.iter_batches(size, row_groups=groups, columns=_read(columns, where)):
            if streaming:
                shared.clear()
            for rows in _matching(batch, where):
                for row in rows.to_pylist():
                    _share_pictures(row, shared)
                    yield {c: row[c] for c in columns} if columns else row


def read_column_names(path: Path) -> list[str]:
    """Names of the columns of a parquet file, in order.

    Raises:
        DataError: if the file is missing or damaged.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


@contextlib.contextmanager
def _opened(path: Path, *, buffered: int = 0) -> Iterator[Any]:
    """A parquet file to read; what goes wrong inside the block is told as damage to the file."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=buffered) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a parquet file; {_RESTORE}") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged: expected a whole parquet file ({reason}); {_RESTORE}") from error


def _read(columns: Sequence[str] | None, where: Mapping[str, Sequence[str]] | None) -> list[str] | None:
    return None if columns is None else list(dict.fromkeys([*columns, *(where or ())]))


def _may_match(group: Any, where: Mapping[str, Sequence[str]] | None) -> bool:
    """Whether a row group's statistics allow a match, so that others are not even read."""
    for index in range(group.num_columns):
        column = group.column(index)
        wanted = (where or {}).get(column.path_in_schema)
        statistics = column.statistics if wanted is not None else None
        if wanted is None or statistics is None or not statistics.has_min_max:
            continue
        if not any(statistics.min <= value <= statistics.max for value in wanted):
            return False
    return True


def _matching(batch: pa.RecordBatch, where: Mapping[str, Sequence[str]] | None) -> Iterator[pa.RecordBatch]:
    """The rows that match, run by run. Arrow's own filters would import pandas first, which takes longer."""
    keep = [True] * len(batch)
    for name, values in (where or {}).items():
        found = batch.column(name).to_pylist()
        keep = [so_far and value in values for so_far, value in zip(keep, found, strict=True)]
    for kept, run in itertools.groupby(range(len(keep)), keep.__getitem__):
        if kept:
            rows = list(run)
            yield batch.slice(rows[0], len(rows))


def _share_pictures(row: dict[str, Any], shared: dict[bytes, bytes]) -> None:
    for picture in _pictures(row):
        picture["bytes"] = shared.setdefault(picture["bytes"], picture["bytes"])


def _pictures(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for value in row.values():
        for picture in value if isinstance(value, list) else [value]:
            if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
                yield picture


def _huggingface_metadata(schema: pa.Schema) -> dict[str, str]:
    features = {field.name: _feature(field.type) for field in schema}
    return {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}


def _feature(kind: pa.DataType) -> Any:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": str(kind), "_type": "Value"}
