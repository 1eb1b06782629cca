"""What several processes gain over one: python -m scripts.processes

The same work on the same samples, once as one process and once shared by several, one thread each: the Fisher
pass and MANU's activation statistics. Runs take turns, and of each the fastest round counts. The time is that
of the work, from the moment all processes are ready to the moment all have finished.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

WORKER = "--worker"


def jobs(size: str, samples: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; of several processes each does its share."""
    from efface.encoding import Encoder
    from efface.models import anatomy
    from efface.neurons import activation_statistics
    from efface.processes import share
    from efface.saliency import fisher_diagonal
    from scripts.subjects import build

    subject = build(size, samples=samples, device="cpu")
    parts, encoder = anatomy(subject.model), Encoder(subject.processor, subject.samples)
    encoder.batch(range(samples))  # encoded once, so that what is compared is the computation
    return {
        "Fisher, per sample": lambda: fisher_diagonal(
            subject.model, encoder.batches(8, share=share), parameters=parts.maskable
        ),
        "neuron statistics": lambda: activation_statistics(
            subject.model, encoder.batches(8, share=share), mlps=parts.mlps, active_above=0.1
        ),
    }


def work(out: Path, size: str, samples: int) -> None:
    """One of the processes: seconds of each job, written by the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    seconds = {}
    for name, job in jobs(size, samples).items():
        job()  # to warm up
        torch.distributed.barrier()
        started = time.perf_counter()
        job()
        torch.distributed.barrier()
        seconds[name] = time.perf_counter() - started
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(seconds), encoding="utf-8")
    torch.distributed.destroy_process_group()


def measure(count: int, size: str, samples: int) -> dict[str, float]:
    """Seconds of each job when so many processes share it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        subprocess.run(
            [sys.executable, *launcher, "-m", "scripts.processes", WORKER, str(out), size, str(samples)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
            check=True,
        )
        return dict(json.loads(out.read_text(encoding="utf-8")))


def main(
    processes: Annotated[int, typer.Option(min=2, help="Processes that share the work.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 2,
    size: Annotated[str, typer.Option(help="Model: tiny, 100M or 0.5B.")] = "tiny",
    samples: Annotated[int, typer.Option(min=8, help="Samples, half of them with a picture.")] = 512,
) -> None:
    """Time all jobs and print a table in Markdown."""
    best: dict[int, dict[str, float]] = {1: {}, processes: {}}
    for number in range(rounds):
        for count in (1, processes) if number % 2 else (processes, 1):
            for name, seconds in measure(count, size, samples).items():
                best[count][name] = min(seconds, best[count].get(name, seconds))
    typer.echo(f"{samples} samples, {size}, {platform.machine()}, {os.cpu_count()} cores, best of {rounds}\n")
    typer.echo(f"| work | 1 process, s | {processes} processes, s | gain |\n|---|---:|---:|---:|")
    for name, alone in best[1].items():
        shared = best[processes][name]
        typer.echo(f"| {name} | {alone:.2f} | {shared:.2f} | {alone / shared:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        typer.run(main)
