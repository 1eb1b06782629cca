"""The quick profile cut down to seconds, for tests that run real stages in this process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.config import SHARED_MODELS, STAGES, Params, load_params
from tasks.config.file import default_values, overlaid, read_yaml

PROJECT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {
    "avatars": {
        "people": 10,
        "real": 4,
        "holdout": 2,
        "stranger_pictures": 60,
        "skill_samples": 30,
        "train_views": 2,
        "test_views": 1,
    },
    "base": {
        "vision_steps": 1,
        "steps": 1,
        "batch_size": 8,
        "width": 32,
        "mlp_width": 64,
        "vision_layers": 2,
        "language_layers": 2,
    },
    "finetune": {"batch_size": 16},
    "vanilla": {"steps": 40},
    "retrained": {"steps": 20},
    "saliency": {"fisher_samples": 8},
    "importance": {"samples": 8},
    "evaluate": {"max_people": 2},
}


def parameters(folder: Path, changes: Mapping[str, Any]) -> Params:
    """The quick profile, small, with these values by section; params.yaml goes to `folder`."""
    values = overlaid(default_values(), read_yaml(PROJECT / "profiles" / "quick.yaml"))
    values = overlaid(overlaid(values, SMALL), dict(changes))
    yaml = YAML()
    yaml.dump(values, folder / "params.yaml")
    return load_params(folder / "params.yaml")


def imported(name: str, **roots: Path) -> dict[str, Any]:
    """The values that choose an imported benchmark."""
    return {"benchmark": {"name": name, "roots": {role: str(path) for role, path in roots.items()}}}


def run_stages(params: Params, root: Path) -> None:
    """Run every stage up to the scores, in this process."""
    for stage in STAGES.values():
        if stage.name in ("control", "attack", "lmms_eval", "report"):
            continue
        module = importlib.import_module(f"tasks.{stage.module}")
        if stage.module != stage.name:
            module.run(params, stage.name, root=root)
            continue
        names = {
            "score": SHARED_MODELS,
            "prune": params.prune.methods,
            "unlearn": params.unlearn.methods,
            "evaluate": params.models,
        }
        for arguments in [[name] for name in names[stage.name]] if stage.per else [[]]:
            module.run(params, *arguments, root=root)
