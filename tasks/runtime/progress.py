"""The rest of a run, for the line at the end of each stage."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.config import Params
from tasks.config.stages import STAGES, names_of
from tasks.runtime.artifacts import read_json


def remaining(params: Params, root: Path = Path("data")) -> str | None:
    """How many stages DVC has yet to run for the first time, and about how long they take.

    The estimate scales the seconds of `STAGES` by the time of the finished stages. None if DVC did not start
    this stage, or if all stages have run before, as only DVC knows which of those are stale.
    """
    from ruamel.yaml import YAML

    current, lock = os.environ.get("DVC_STAGE"), root.parent / "dvc.lock"
    if current is None:
        return None
    locked = YAML(typ="safe").load(lock)["stages"] if lock.is_file() else {}
    names = {"evaluate": params.models, "attack": params.attack.models, "lmms_eval": params.lmms_eval.models}
    remaining = [
        stage
        for stage in STAGES.values()
        for name in (names.get(stage.name, names_of(stage, params)) if stage.per else [""])
        if _dvc_name(stage.name, name, params) not in {current, *locked}
    ]
    if not remaining:
        return None
    count = f"{len(remaining)} stage{'s' if len(remaining) > 1 else ''} left"
    records = [read_json(path) for path in (root / "runs").glob("*.json")]
    typical = sum(STAGES[record["stage"]].seconds for record in records)
    if not typical:
        return count
    seconds = (
        sum(stage.seconds for stage in remaining) * sum(record["seconds"] for record in records) / typical
    )
    return f"{count}, about {seconds / 60:.0f} min" if seconds >= 60 else f"{count}, less than a minute"


def _dvc_name(stage: str, name: str, params: Params) -> str:
    if stage == "evaluate":
        return params.evaluation_of(name)
    return f"{stage}@{name}" if name else stage
