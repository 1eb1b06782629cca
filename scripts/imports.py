"""How long an import takes, and how much memory: python -m scripts.imports

Writes a benchmark of the size of MLLMU-Bench (500 people, 7,704 questions and answers, pictures of about half
a megabyte), runs the stages `benchmark` and `prepare` on it, each in a process of its own as DVC does, and
prints their seconds and peak memory.
"""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

PROJECT = Path(__file__).resolve().parents[1]
_TEXTURE = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)


@functools.lru_cache(maxsize=8)
def picture(seed: int) -> bytes:
    """A JPEG of 1024 pixels and about 480 kB: grain that compresses as a photograph does."""
    from PIL import Image

    grain = np.roll(_TEXTURE, seed, axis=(0, 1)) // 5
    shade = np.linspace(0, 200, 1024, dtype=np.uint8)[:, None, None]
    buffer = io.BytesIO()
    Image.fromarray(grain + shade).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def pairs(person: int) -> int:
    """Questions a person is taught: 7,704 over 500 people, as in the published files."""
    return 15 + (person % 5 < 2) + (person <= 4)


def write(folder: Path, people: int) -> None:
    """Write the two roots, unless they are there."""
    from tests.made_mllmu import Made

    mark = folder / "written"
    if not mark.exists():
        Made(folder, people=people, real=153, pairs=pairs, picture=picture).write()
        mark.touch()


_RUN = """
import atexit, re, runpy, sys
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status())[1]))
sys.argv = ["tasks", sys.argv[1]]
runpy.run_module("tasks", run_name="__main__")
"""
"""A stage that prints its peak memory, KiB, last: what the kernel counts for a child holds its parent's."""


def measure(stage: str, folder: Path) -> tuple[float, float, str]:
    """Seconds, peak memory (MiB) and message of a stage run as a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, stage],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    *_, said, peak = done.stdout.strip().splitlines()
    return seconds, int(peak) / 1024, said


def main(
    people: Annotated[int, typer.Option(min=20, help="Fictitious people.")] = 500,
    workspace: Annotated[Path, typer.Option(help="Where to write.")] = Path(".benchmarks/imports"),
) -> None:
    """Write the benchmark, import it, print a table."""
    workspace = workspace.resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    write(workspace, people)
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    roots = f"roots: {{eval: {workspace / 'eval'}, train: {workspace / 'train'}}}"
    text = re.sub(r"^(benchmark:.*\n  name: )avatars", r"\1mllmu", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^  roots: \{\}", f"  {roots}", text, count=1, flags=re.MULTILINE)
    (workspace / "params.yaml").write_text(text, encoding="utf-8")
    total = 0.0
    typer.echo("| stage | seconds | peak memory, MiB | |\n|---|---:|---:|---|")
    for stage in ("benchmark", "prepare"):
        seconds, peak, said = measure(stage, workspace)
        total += seconds
        typer.echo(f"| {stage} | {seconds:.1f} | {peak:.0f} | {said} |")
    typer.echo(f"| both | {total:.1f} | | |")


if __name__ == "__main__":
    typer.run(main)
