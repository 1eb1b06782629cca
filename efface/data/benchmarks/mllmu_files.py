"""The folders of MLLMU-Bench: two roots with the same folder names, told apart by the `metadata` column.

The evaluation root is the benchmark itself, the training root its training split. `Retain_Set` holds the real
people, not the people to retain. Folders that only some benchmarks of this format have are optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.parquet import read_column_names, read_rows
from efface.errors import DataError

Row = dict[str, Any]

PATTERNS = ("*.parquet",)
"""Files to download of a root on the Hub."""

PERCENTS = (5, 10, 15)
PROFILE_COLUMNS = ("ID", "biography", "Classification_Task", "Mask_Task", "Generation_Task")

_FIXED = {"eval": ("Full_Set", "Test_Set", "Retain_Set"), "train": ()}
_OPTIONAL = {"eval": ("Holdout_Set", "Skills_Test"), "train": ("Base_Data", "Skills_Train", "Strangers")}
_REPOSITORIES = {"eval": "datasets/MLLMMU/MLLMU-Bench", "train": "MLLMMU/baseline_train_split"}
_UNCHECKED = ("Skills_Test", "Skills_Train", "Strangers")


def forget_folder(percent: int) -> str:
    """Folder of the people to forget."""
    return f"forget_{percent}"


def retain_folder(percent: int) -> str:
    """Folder of the people to retain when so many percent are forgotten."""
    return f"retain_{100 - percent}"


def files_to_import(role: str, root: Path) -> list[Path]:
    """The parquet files of a root that the reader reads, after a look at their columns.

    Args:
        role: `eval` or `train`.
        root: folder as downloaded from the Hub.

    Raises:
        DataError: if a folder is missing, or the folder is the other root, or none at all.
    """
    there = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    pairs = [(forget_folder(p), retain_folder(p)) for p in PERCENTS]
    complete = [folder for pair in pairs if set(pair) <= there for folder in pair]
    missing = [folder for folder in _FIXED[role] if folder not in there]
    halves = [f for pair in pairs for f in pair if f not in there and set(pair) & there]
    if role == "eval" and missing and complete and "metadata" in _columns(root / complete[0]):
        check_evaluation(root / complete[0])  # says that the roots are swapped
    if missing or halves or not complete:
        wanted = missing + halves or ["forget_5 and retain_95 (or 10 and 90, 15 and 85)"]
        raise DataError(
            f"{root} lacks {', '.join(wanted)}: expected the {role} root of MLLMU-Bench "
            f"({_REPOSITORIES[role]}), found {', '.join(sorted(there)) or 'no folder'}; download all of it "
            f"and set benchmark.roots.{role} to the folder that holds these"
        )
    folders = [*_FIXED[role], *complete, *(name for name in _OPTIONAL[role] if name in there)]
    for name in folders:
        if name not in _UNCHECKED:
            (check_evaluation if role == "eval" else check_training)(root / name)
    return [file for name in folders for file in parquet_files(root / name)]


def parquet_files(folder: Path) -> list[Path]:
    """Every parquet file of a folder in order: a set may come in several.

    Raises:
        DataError: if there is none.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(
            f"{folder} holds no parquet file: expected a folder of MLLMU-Bench; make it with `dvc repro`, "
            "or check the benchmark's roots"
        )
    return files


def rows(
    folder: Path, columns: tuple[str, ...], *, optional: tuple[str, ...] = ()
) -> Iterator[tuple[Path, int, Row]]:
    """File, row number in it and row of every row of a folder, pictures of a few rows in memory at a time."""
    for path in parquet_files(folder):
        there = read_column_names(path)
        wanted = [*columns, *(c for c in optional if c in there)]
        for number, row in enumerate(read_rows(path, columns=wanted, streaming=True)):
            yield path, number, row


def check_training(folder: Path) -> None:
    """Refuse a folder that is not one of the training root.

    Raises:
        DataError: if its files have no `metadata` column.
    """
    names = _columns(folder)
    if "metadata" not in names:
        raise DataError(
            f"{folder} has no `metadata` column, so it is an evaluation file (columns {names}); the training "
            f"root must be the training split ({_REPOSITORIES['train']}), whose forget_* and retain_* hold "
            "question-answer pairs. Are the two roots swapped?"
        )


def check_evaluation(folder: Path) -> str:
    """The picture column of an evaluation folder.

    Raises:
        DataError: if its files are training files, or lack a column.
    """
    names = _columns(folder)
    if "metadata" in names:
        raise DataError(
            f"{folder} has a `metadata` column, so it is a training file; the evaluation root must be "
            f"MLLMU-Bench itself ({_REPOSITORIES['eval']}), whose files hold Classification_Task. Are the "
            "two roots swapped?"
        )
    column = "images" if "images" in names else "image"
    if missing := [name for name in (column, *PROFILE_COLUMNS) if name not in names]:
        raise DataError(
            f"{folder} lacks the columns {', '.join(missing)} (found {names}): expected a folder of "
            f"{_REPOSITORIES['eval']}; check benchmark.roots.eval"
        )
    return column


def check_ratio(root: Path, percent: int) -> None:
    """Refuse a share of people that the files do not know.

    Raises:
        DataError: naming the shares there are.
    """
    there = [p for p in PERCENTS if (root / forget_folder(p)).is_dir()]
    if percent not in there and any(root.glob("forget_*")):
        known = ", ".join(f"{p / 100:g}" for p in there)
        raise DataError(
            f"{root} has no folder {forget_folder(percent)}: its people to forget are given for the shares "
            f"{known}; set prepare.forget_fraction to one of them"
        )


def _columns(folder: Path) -> list[str]:
    return read_column_names(parquet_files(folder)[0])
