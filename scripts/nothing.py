"""What finding out costs that nothing has changed: python -m scripts.nothing FOLDER...

Each folder is a project in which everything has been made; of several, with other code, each has its turn in
every round. Prints the seconds of `dvc repro`, of `python -m flows.pipeline` with a server running, and with
`--flows` of one that starts a server of its own: wall of the quickest, of all, and processor of the cheapest.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

_STARTING = 180.0
"""Seconds that a server may take to answer."""


@contextlib.contextmanager
def server(environment: dict[str, str]) -> Iterator[str]:
    """A Prefect server on a free port of this machine; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            address = f"http://127.0.0.1:{port}/api"
            _wait_for(f"{address}/health")
            yield address
        finally:
            process.terminate()


def _wait_for(address: str) -> None:
    end = time.monotonic() + _STARTING
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.5)
    raise SystemExit(f"no Prefect server at {address} after {_STARTING:g} s")


def run(folder: Path, module: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of a command that finds nothing to do; SystemExit if it does something."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    said = done.stdout + done.stderr
    worked = any(
        words in said for words in ("Running stage", "is cached - skipping run", " ran", " restored")
    )
    if done.returncode or worked:
        raise SystemExit(f"{folder}: {' '.join(module)} found something to do:\n{said[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(
    folders: Annotated[list[Path], typer.Argument(help="Projects in which everything has been made.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; the quickest counts.")] = 5,
    flows: Annotated[bool, typer.Option(help="Also flows that start a server of their own.")] = False,
) -> None:
    """Run everything in turns and print the table."""
    unwanted = ("PYTHONPATH", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    plain = {name: value for name, value in os.environ.items() if name not in unwanted}
    plain["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{plain.get('PATH', '')}"
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as home:
        plain["PREFECT_HOME"] = home
        with server(plain) as address:
            flow = ["flows.pipeline"]
            cases = {
                "dvc repro": (["dvc", "repro"], plain),
                "flow, server running": (flow, plain | {"PREFECT_API_URL": address}),
                **({"flow alone": (flow, plain | {"PREFECT_HOME": f"{home}/alone"})} if flows else {}),
            }
            for _ in range(rounds):
                for name, (module, environment) in cases.items():
                    for folder in folders:
                        found = run(folder.resolve(), module, environment)
                        measured.setdefault((name, folder.name), []).append(found)
    typer.echo("| nothing to do | folder | best, s | all, s | processor, s |\n|---|---|---:|---:|---:|")
    for (name, folder), turns in measured.items():
        walls, busy = zip(*turns, strict=True)
        line = f"{min(walls):.1f} | {min(walls):.1f} to {max(walls):.1f} | {min(busy):.1f}"
        typer.echo(f"| {name} | {folder} | {line} |")


if __name__ == "__main__":
    typer.run(main)
