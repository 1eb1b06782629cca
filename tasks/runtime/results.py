"""Reading the results of finished stages, with errors that name the file and how to restore it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ArtifactError
from tasks.runtime.artifacts import read_json

if TYPE_CHECKING:
    import pandas as pd

RESTORE = "restore it with: dvc checkout --force, or make it with: dvc repro"


@dataclass(frozen=True)
class Record:
    """One file of data/runs: the record of a stage's run."""

    stage: str
    name: str | None
    content: dict[str, Any]

    @property
    def label(self) -> str:
        """``stage`` or ``stage@name``, as DVC writes it."""
        return f"{self.stage}@{self.name}" if self.name else self.stage


def read_scores(root: Path, model: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The score table of a model and its summary.

    Raises:
        ArtifactError: if either file is missing or damaged.
    """
    path = root / "scores" / f"{model}.parquet"
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist: expected the score table of {model}; make it with: dvc repro"
        )
    return _table(path), read_json(path.with_suffix(".json"))


def read_attacks(root: Path, model: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The attack table of a model and its JSON file; None if the model was not attacked.

    Raises:
        ArtifactError: if either file is damaged.
    """
    path = root / "attacks" / f"{model}.parquet"
    return (_table(path), read_json(path.with_suffix(".json"))) if path.is_file() else None


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} is damaged: expected a parquet table, got {reason}; {RESTORE}"
        ) from error


def prepared_files(root: Path) -> dict[str, Path]:
    """The table of samples and the split, as inputs of a stage."""
    return {"prepared": root / "prepared" / "samples.parquet", "split": root / "prepared" / "splits.json"}


def read_splits(root: Path) -> dict[str, Any]:
    """Who is in which split, as ``split`` wrote it.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    return dict(read_json(root / "prepared" / "splits.json"))


def read_records(root: Path) -> list[Record]:
    """Every run record under ``root``, by file name; there may be none.

    Raises:
        ArtifactError: if a record is damaged.
    """
    contents = [read_json(path) for path in sorted((root / "runs").glob("*.json"))]
    return [Record(content["stage"], content.get("name"), content) for content in contents]


def mask_metadata(path: Path) -> dict[str, Any] | None:
    """Metadata of a file in data/masks without its tensors; None if there is no such file.

    Raises:
        ArtifactError: if the file is damaged or not from this pipeline.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:  # numpy, as torch is not needed
            return dict(json.loads((file.metadata() or {})["efface"]))
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path} is damaged: expected safetensors with an `efface` entry, got {type(error).__name__}: "
            f"{error}; {RESTORE}"
        ) from error


def locked_digests(project: Path) -> dict[str, str]:
    """md5 of every output that dvc.lock records, by path; empty without a lock file."""
    from ruamel.yaml import YAML

    path = project / "dvc.lock"
    stages = YAML(typ="safe").load(path)["stages"] if path.is_file() else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {out["path"]: out["md5"] for out in outs if out.get("md5")}


def project_of(root: Path) -> Path:
    """The absolute folder that contains ``root``, without resolving links."""
    return root.absolute().parent
