"""CLEAR's folder as downloaded: its configurations, their columns, and which of their files are needed.

A configuration is a folder of parquet files with one split. `full`, `full+tofu` and `data` repeat what the
forget and retain configurations hold, so they are not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.parquet import read_column_names, read_rows
from efface.errors import DataError

PERCENTS = (1, 5, 10)
"""Shares of the authors that a forget configuration holds."""

PICTURES = ("image", "caption", "name")
"""Columns of forgetNN and retainNN."""
PERTURBED = (*PICTURES, "paraphrased_caption", "perturbed_captions", "perturbed_names")
"""Columns of forgetNN_perturbed and retain_perturbed, whose order differs from file to file."""
WITH_TOFU = ("image", "caption", "question", "answer")
"""Columns of X+tofu: rows with a picture and a caption, and rows with a question and an answer."""
REAL_FACES = ("image", "answer", "options")
REAL_WORLD = ("image", "question", "answer", "options")

_SHARED = {"retain_perturbed": PERTURBED, "real_faces": REAL_FACES, "real_world": REAL_WORLD}
_DOWNLOAD = (
    "download it with `hf download therem/CLEAR --repo-type dataset --revision COMMIT --local-dir FOLDER`"
)


def configurations(percent: int) -> dict[str, tuple[str, ...]]:
    """Configurations with their columns for one share to forget.

    Raises:
        DataError: if CLEAR has no such share.
    """
    if percent not in PERCENTS:
        raise DataError(
            f"forget share {percent} %: CLEAR has {', '.join(map(str, PERCENTS))} %; set "
            "prepare.forget_fraction to 0.01, 0.05 or 0.1"
        )
    return _of_share(percent) | _SHARED


def forget_name(percent: int) -> str:
    """Name of the forget configuration, such as `forget05`."""
    return f"forget{percent:02}"


def retain_name(percent: int) -> str:
    """Name of the retain configuration that belongs to a share to forget, such as `retain95`."""
    return f"retain{100 - percent}"


PATTERNS = tuple(
    f"{name}/*.parquet"
    for percent in PERCENTS
    for name in (
        forget_name(percent),
        f"{forget_name(percent)}+tofu",
        f"{forget_name(percent)}_perturbed",
        retain_name(percent),
        f"{retain_name(percent)}+tofu",
    )
) + tuple(f"{name}/*.parquet" for name in _SHARED)
"""What to download from the Hub."""


def files_to_import(role: str, root: Path) -> list[Path]:
    """The files of every share that is whole, and of what the shares have in common.

    Args:
        role: `data`, CLEAR's only root.
        root: the folder that holds the configurations.

    Raises:
        DataError: if the folder is not CLEAR's, no share is whole, or a file lacks a column.
    """
    there = {p.name for p in root.iterdir() if p.is_dir()} if root.is_dir() else set()
    if not there & {"full", "real_faces", *(forget_name(p) for p in PERCENTS)}:
        raise DataError(
            f"{root} does not hold CLEAR's configurations (found {sorted(there)[:8]}): expected the folder "
            f"with forget05, retain95 and the others as its subfolders; {_DOWNLOAD}"
        )
    whole = [percent for percent in PERCENTS if set(_of_share(percent)) <= there]
    missing = sorted({*_SHARED} - there)
    if not whole or missing:
        lacking = missing or sorted(set(_of_share(5)) - there)
        raise DataError(
            f"{root} lacks {', '.join(lacking)}: every share to forget needs its own five configurations "
            f"(for 5 %: {', '.join(_of_share(5))}) and {', '.join(_SHARED)}; {_DOWNLOAD}"
        )
    wanted = {name: columns for percent in whole for name, columns in configurations(percent).items()}
    found: list[Path] = []
    for name, columns in sorted(wanted.items()):
        files = files_of(root, name)
        for file in files:
            _check_columns(file, columns)
        found += files
    return found


def files_of(root: Path, name: str) -> list[Path]:
    """The parquet files of a configuration, in order.

    Raises:
        DataError: if there is none.
    """
    files = sorted((root / name).glob("*.parquet"))
    if not files:
        raise DataError(
            f"{root / name} holds no parquet file: expected a configuration of CLEAR; {_DOWNLOAD}"
        )
    return files


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    file: Path
    number: int
    """Row of the file, from 0."""
    index: int
    """Row of the configuration, all its files in order, from 0."""

    @property
    def row(self) -> str:
        """The row in words."""
        return f"row {self.number}"


def rows_of(
    root: Path, name: str, columns: Sequence[str], *, streaming: bool = False
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of a configuration, each with its place; ``streaming`` holds the pictures of a few rows only."""
    index = 0
    for file in files_of(root, name):
        for number, row in enumerate(read_rows(file, columns=columns, streaming=streaming)):
            yield Place(file, number, index), row
            index += 1


def _of_share(percent: int) -> dict[str, tuple[str, ...]]:
    forget, retain = forget_name(percent), retain_name(percent)
    return {
        forget: PICTURES,
        f"{forget}+tofu": WITH_TOFU,
        f"{forget}_perturbed": PERTURBED,
        retain: PICTURES,
        f"{retain}+tofu": WITH_TOFU,
    }


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    names = read_column_names(file)
    if missing := [column for column in columns if column not in names]:
        old = ""
        if "name" in missing:
            old = " (revisions before the benchmark was renamed had no name column)"
        raise DataError(
            f"{file} has no column {', '.join(missing)}{old}: expected {list(columns)}, found {names}; "
            f"{_DOWNLOAD}"
        )
