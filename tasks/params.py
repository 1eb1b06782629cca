"""Stage params: check params.yaml before anything else runs."""

from __future__ import annotations

from pathlib import Path

import typer

from tasks.config import Params
from tasks.runtime.artifacts import writing
from tasks.runtime.environment import unused_gpu


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `params.txt`, which every other stage waits for; the parameters were checked when they were read.

    The text is always the same, so a change of parameters makes only those stages stale that use them.
    """
    with writing(root / "params.txt") as partial:
        partial.write_text("params.yaml holds no mistake\n", encoding="utf-8")
    typer.echo("params: params.yaml is valid")
    if advice := unused_gpu():
        typer.echo(f"warning: {advice}", err=True)
