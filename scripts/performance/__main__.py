"""Runs the cases and prints their tables in Markdown; --write puts them into docs/performance.md.

python -m scripts.performance                                     what a processor can do in minutes
python -m scripts.performance --sizes tiny,100M,0.5B              and a size that takes it longer
python -m scripts.performance --sizes 7B --device cuda            the same on a GPU
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from scripts.performance.timing import Clock, Row, exponent
from tasks.runtime import environment

environment.apply()

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "performance.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
HEAD = "| case | size | measured | target | met | |\n|---|---|---|---|---|---|"
PLAN = {
    "tiny": (8, ("fisher", "statistics", "mask_file", "epoch", "scoring"), 128),
    "100M": (3, ("fisher", "statistics", "mask_file", "epoch", "scoring"), 32),
    "0.5B": (1, ("fisher", "statistics", "mask_file"), 16),
    "7B": (3, ("fisher", "statistics", "mask_file", "scoring"), 32),
}
"""Per size: rounds, cases, samples. What takes a processor too long at a size, or more than 16 GB, is left
out there."""


def main(
    sizes: Annotated[str, typer.Option(help="Sizes, with commas: tiny, 100M, 0.5B, 7B.")] = "tiny,100M",
    cases: Annotated[str, typer.Option(help="Cases, with commas; empty: all of the size.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds; 0: as many as suit the size.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    grow: Annotated[bool, typer.Option(help="Fit how time grows, on the tiny model.")] = True,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/performance.md.")] = False,
) -> None:
    """Measure, print, and write if asked."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    import torch

    torch.set_num_threads(threads)
    began = time.perf_counter()
    lines = [*_about(device, threads), "", HEAD]
    typer.echo("\n".join(lines))
    wanted = cases.split(",") if cases else None
    for size in sizes.split(","):
        for row in _rows(size, wanted, rounds, device):
            lines.append(row.line())
            typer.echo(lines[-1])
    if grow:
        grown = ["", *_growth(device)]
        typer.echo("\n".join(grown))
        lines += grown
    lines += ["", f"In all {time.perf_counter() - began:.0f} s."]
    typer.echo(lines[-1])
    if write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        text = "\n".join(lines)
        PAGE.write_text(f"{before}{BEGIN}{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _rows(size: str, wanted: list[str] | None, rounds: int, device: str) -> Iterator[Row]:
    """The rows of a size, case by case."""
    from scripts.performance.cases import CASES
    from scripts.performance.sizes import build

    usual, cases, samples = PLAN[size]
    subject = build(size, samples=samples, device=device)
    typer.echo(f"<!-- {size}: {subject.weights:,} weights -->")
    for case in cases:
        if wanted is None or case in wanted:
            yield from CASES[case](subject, Clock(device, rounds or usual))


def _growth(device: str) -> list[str]:
    from scripts.performance.cases import growth
    from scripts.performance.sizes import build

    jobs = ("plain", "fisher", "statistics")
    lines = ["| time grows with the power | of samples | of tokens per sample |", "|---|---|---|"]
    clock = Clock(device, 3)
    counts, words = (32, 64, 128), (16, 64, 256)
    by_samples = [build("tiny", samples=n, device=device) for n in counts]
    by_words = [build("tiny", samples=16, device=device, words=n) for n in words]
    lengths = [max(b["input_ids"].shape[1] for b in s.batches) for s in by_words]
    for job in jobs:
        a = exponent(counts, [growth(s, clock, job) for s in by_samples])
        b = exponent(lengths, [growth(s, clock, job) for s in by_words])
        lines.append(f"| {job} | {a:.2f} | {b:.2f} ({lengths[0]} to {lengths[-1]} tokens) |")
    return lines


def _about(device: str, threads: int) -> list[str]:
    """What was run, on which machine, of which commit, and when."""
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout.strip()
    busy, (name, cores) = os.getloadavg()[0], _processor()
    machine = f"{name}, {cores} cores, {threads} thread{'s' * (threads > 1)}; load at the start {busy:.1f}"
    if device != "cpu":
        machine = f"{torch.cuda.get_device_name()}; {machine}"
    command = " ".join(["python -m scripts.performance", *sys.argv[1:]])
    return [
        f"- Command: `{command}`",
        f"- Machine: {machine}",
        f"- Commit {commit or 'unknown'}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    ]


def _processor() -> tuple[str, int]:
    """Name of the processor, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text(encoding="utf-8")) if told.exists() else None
    return f"{found[1].strip()} ({platform.machine()})" if found else platform.machine(), cores


if __name__ == "__main__":
    typer.run(main)
