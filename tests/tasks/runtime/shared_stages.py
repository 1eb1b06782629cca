"""Stages one after the other, in this process or in several that a launcher started: a program for tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tasks.config import load_params
from tasks.runtime import sharing


def run(root: Path) -> None:
    """Run the stages that share their work, with the parameters beside `root`."""
    params = load_params(root.parent / "params.yaml")
    for stage, *name in (["importance"], ["saliency"], ["control", "magnitude"], ["unlearn", "mmunlearner"]):
        importlib.import_module(f"tasks.{stage}").run(params, *name, root=root)


if __name__ == "__main__":
    with sharing.joined("unlearn"):
        run(Path(sys.argv[1]))
