"""Folders for a stage's unfinished work, each named after everything that the run depends on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tasks.runtime.artifacts import digest

if TYPE_CHECKING:
    from efface.unlearning.training.checkpoint import Checkpoints


FINISHED = "finished"


def run_folder(
    stage: str,
    *,
    root: Path,
    settings: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, Path],
    name: str | None = None,
    main: bool = True,
) -> tuple[Path, str]:
    """The folder for the unfinished work of this run, and a key of all that the run depends on.

    Deletes folders of the same stage with other settings or inputs, and finished ones of other stages.

    Args:
        stage: name of the stage.
        root: the data folder; unfinished work is in its `checkpoints`, which neither git nor DVC tracks.
        settings: plain values that the run depends on.
        seed: the run's seed.
        inputs: files and folders that the run reads.
        name: method or model of a stage that runs once per method or model.
        main: whether this process deletes and prints; one of several processes does.
    """
    basis = {
        "settings": settings,
        "seed": seed,
        "inputs": {key: digest(path) for key, path in inputs.items()},
    }
    key = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
    parent = root / "checkpoints" / (f"{stage}@{name}" if name else stage)
    folder = parent / key[:16]
    if main:
        for marker in (root / "checkpoints").glob(f"*/*/{FINISHED}"):
            if marker.parent.parent != parent:  # another stage is running, so DVC has stored that output
                shutil.rmtree(marker.parent)
        for sibling in parent.iterdir() if parent.is_dir() else ():
            if not sibling.name.startswith(folder.name):  # parts of its replacement may be beside it
                typer.echo(f"{stage}: deleting {sibling}, made with other settings or inputs", err=True)
                shutil.rmtree(sibling)
        if any(parent.glob(f"{folder.name}*")):
            typer.echo(f"{stage}: resuming from {folder}", err=True)
    return folder, key


def checkpoints_for(stage: str, **run: Any) -> Checkpoints:
    """Checkpoints of this run; see `run_folder` for the arguments."""
    from efface.unlearning.training.checkpoint import Checkpoints

    folder, key = run_folder(stage, **run)
    return Checkpoints(folder, key=key)


def mark_finished(checkpoints: Checkpoints) -> None:
    """Keep a finished run's checkpoint until another stage starts.

    DVC stores a stage's output only after the stage has ended; if it is killed in between, the stage runs
    again.
    """
    shutil.rmtree(checkpoints.references.parent, ignore_errors=True)
    if checkpoints.folder.is_dir():
        (checkpoints.folder / FINISHED).touch()
