"""Where a stage keeps its checkpoint: one folder per stage, named after everything the run depends on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from efface.unlearning.training.checkpoint import Checkpoints


def checkpoints_for(
    stage: str,
    *,
    root: Path,
    settings: Any,
    seed: int,
    inputs: Mapping[str, Path],
    name: str | None = None,
    main: bool = True,
) -> Checkpoints:
    """Checkpoints of this very run; those of runs with other settings or inputs are deleted.

    Args:
        stage: name of the stage.
        root: the data folder; checkpoints live in its `checkpoints`, which neither git nor DVC tracks.
        settings: the pydantic section, or plain values, the run depends on.
        seed: the run's seed.
        inputs: files and folders the run reads.
        name: method of a stage that runs once per method.
        main: whether this process is the one of those training together that deletes and speaks.
    """
    from efface.unlearning.training.checkpoint import Checkpoints
    from tasks.runtime.artifacts import digest

    values = settings.model_dump(mode="json") if hasattr(settings, "model_dump") else settings
    basis = {"settings": values, "seed": seed, "inputs": {key: digest(path) for key, path in inputs.items()}}
    key = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
    folder = root / "checkpoints" / (f"{stage}@{name}" if name else stage)
    for other in folder.iterdir() if main and folder.is_dir() else ():
        if not other.name.startswith(key[:16]):
            typer.echo(
                f"{stage}: deleting the checkpoint {other}, made with other settings or inputs", err=True
            )
            shutil.rmtree(other)
    checkpoints = Checkpoints(folder / key[:16], key=key)
    if main and checkpoints.exist():
        typer.echo(f"{stage}: resuming from the checkpoint in {folder / key[:16]}", err=True)
    return checkpoints
