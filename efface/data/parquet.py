"""Parquet files of rows with pictures, which are never re-encoded."""

from __future__ import annotations

import atexit
import functools
import gc
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from efface.errors import DataError

if TYPE_CHECKING:
    from datasets import Features

Row = dict[str, Any]

# A stream left in a reference cycle until Python exits aborts the process there, after its work is done
# (apache/arrow issue 45214), so it is freed earlier.
atexit.register(gc.collect)

_GROUP_BYTES = 1 << 26
"""Bytes of pictures, repeats included, at which a row group ends."""


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, features: Features) -> None:
    """Write rows as they come. Equal rows give equal bytes; keys that a row lacks become null.

    Equal pictures of a row group are stored once.

    Raises:
        DataError: if a row has an unknown key, or a value of the wrong type.
    """
    import pyarrow.parquet as pq

    schema = features.arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = pq.ParquetWriter(
        path, schema, compression="zstd", dictionary_pagesize_limit=1 << 30, write_page_checksum=True
    )
    with writer:
        group: list[Mapping[str, Any]] = []
        size = 0
        for number, row in enumerate(rows):
            if unknown := sorted(set(row) - set(features)):
                raise DataError(
                    f"row {number} for {path.name} has unknown columns {unknown}; known: {list(features)}"
                )
            group.append(row)
            size += sum(len(picture["bytes"] or b"") for picture in _pictures(row))
            if size >= _GROUP_BYTES:
                writer.write_table(_table(group, schema, path))
                group, size = [], 0
        writer.write_table(_table(group, schema, path))


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise DataError(f"cannot write {path.name}: a value does not fit its column ({error})") from error


def read_parquet(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    where: Mapping[str, Sequence[str]] | None = None,
    share_pictures: bool = False,
) -> Iterator[Row]:
    """The rows of a file in order, a few in memory at a time.

    Args:
        path: the file.
        columns: columns to read, all of which the file must have; None reads all.
        optional: further columns to read if the file has them.
        where: column to values; only rows that hold one of them are returned.
        share_pictures: keep every picture in memory, so that rows with equal pictures share the bytes.

    Raises:
        DataError: if the file is missing, damaged, or lacks a column.
    """
    from pyarrow.dataset import ParquetFileFormat, ParquetFragmentScanOptions, dataset, field

    names = column_names(path)
    if missing := [name for name in [*(columns or ()), *(where or ())] if name not in names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: expected {list(columns or ())}, its columns are "
            f"{names}"
        )
    if columns is not None:
        columns = [*columns, *(name for name in optional if name in names)]
    options = ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
    conditions = [field(name).isin(list(values)) for name, values in (where or {}).items()]
    pictures: dict[bytes, bytes] = {}
    try:
        table = dataset(path, format=ParquetFileFormat(default_fragment_scan_options=options))
        for batch in table.to_batches(
            columns=None if columns is None else list(columns),
            filter=functools.reduce(operator.and_, conditions) if conditions else None,
            batch_size=512 if share_pictures else 8,
            batch_readahead=0,
            fragment_readahead=0,
        ):
            for row in batch.to_pylist():
                for picture in _pictures(row) if share_pictures else ():
                    picture["bytes"] = pictures.setdefault(picture["bytes"], picture["bytes"])
                yield row
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def parquet_files(folder: Path) -> list[Path]:
    """Every parquet file of a folder in order; a set may be split into several.

    Raises:
        DataError: if there is none.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder} holds no parquet file; download it, or correct the root that holds it")
    return files


def read_folder(
    folder: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[Path, int, Row]]:
    """Every row of a folder as (file, row number, row); arguments and errors as in `read_parquet`."""
    for file in parquet_files(folder):
        for number, row in enumerate(read_parquet(file, columns, optional=optional)):
            yield file, number, row


def column_names(path: Path) -> list[str]:
    """Names of the columns of a parquet file, in order.

    Raises:
        DataError: if the file is missing or damaged.
    """
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a parquet file; restore or rebuild it") from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def column_values(path: Path, column: str) -> set[str]:
    """The different values of one column of a parquet file.

    Raises:
        DataError: if the file is missing, damaged, or lacks the column.
    """
    import pyarrow.parquet as pq

    if column not in column_names(path):
        raise DataError(f"{path} has no column {column}; its columns are {column_names(path)}")
    try:
        return set(pq.read_table(path, columns=[column]).column(column).unique().to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path} is damaged: expected a complete parquet file ({reason}); restore or rebuild it")


def _pictures(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The pictures of a row that come with their bytes."""
    for value in row.values():
        for picture in value if isinstance(value, list) else [value]:
            if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
                yield picture
