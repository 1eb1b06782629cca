"""Make the work pool and the deployments of prefect.yaml on the server: python -m flows.deploy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from efface.errors import EffaceError
from flows.devices import gpus
from flows.server import require_server
from tasks.runtime import environment

FILE = Path("prefect.yaml")


class DeployError(EffaceError):
    """The server does not take the pool or a deployment."""


def main(
    pool: Annotated[str, typer.Option(help="The work pool of prefect.yaml.")] = "gpu",
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side; by default one per GPU of this machine, or one."),
    ] = None,
) -> None:
    """Make the pool, with as many slots as there are GPUs, and every deployment."""
    environment.apply()
    try:
        require_server(needed=True)
        there, missing = _deployments()
        if not _done("work-pool", "inspect", pool):
            _prefect("work-pool", "create", pool, "--type", "process")
        _prefect("work-pool", "set-concurrency-limit", pool, str(slots or max(1, len(gpus()))))
        _prefect("--no-prompt", "deploy", *(word for name in there for word in ("--name", name)))
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"deploy: {', '.join(there)} in the pool {pool}, which runs {slots or max(1, len(gpus()))} at once"
    )
    for name in missing:
        typer.echo(f"deploy: left out {name}, whose flow is not part of this copy")


def _deployments() -> tuple[list[str], list[str]]:
    """Names in prefect.yaml: those whose flow is here, and the others."""
    from ruamel.yaml import YAML

    if not FILE.is_file():
        raise DeployError(f"{FILE} is not here; run this in the project's root")
    listed = YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))["deployments"]
    there = {each["name"]: _is_here(each["entrypoint"].rpartition(".")[0]) for each in listed}
    return [name for name in there if there[name]], [name for name in there if not there[name]]


def _is_here(module: str) -> bool:
    path = Path(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _prefect(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode:
        lines = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise DeployError(f"prefect {' '.join(arguments)} failed:\n{lines}")


def _done(*arguments: str) -> bool:
    return _run(*arguments).returncode == 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    ours = {"PROJECT_ROOT": str(Path.cwd()), "EFFACE_GPUS": ",".join(gpus())}
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env={**os.environ, **ours},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    typer.run(main)
