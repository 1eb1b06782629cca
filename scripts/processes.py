"""What several processes gain: python -m scripts.processes

Each contender does the same work on the same samples, once as one process and once shared by several, one
thread each: the Fisher pass, MANU's activation statistics, and unlearning with NPO. Runs take turns, because
a machine that others use is slow for minutes; of each the fastest round counts. The time is that of the work,
from the moment all processes are ready to the moment all are done; starting them is a row of its own.
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

import typer

from tasks.runtime import environment

environment.apply()

LIMIT = 1.6
"""Lowest acceptable gain of two processes."""
STEP = 32
"""People to forget in a training step, and as many to keep: after each, processes exchange all gradients."""
WORKER = "--worker"


def jobs(people: int, width: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; of several processes each does its share."""
    import copy

    import torch

    from efface import sandbox
    from efface.encoding import Encoder
    from efface.models import anatomy
    from efface.neurons import activation_statistics
    from efface.processes import share
    from efface.saliency import fisher_diagonal
    from efface.unlearning import METHODS, TrainingConfig
    from efface.unlearning.training.loop import Terms, train
    from scripts.performance.sizes import made_samples

    torch.manual_seed(0)
    drawn = made_samples(2 * people)
    tokenizer = sandbox.build_tokenizer([f"{s.question} {s.answer}" for s in drawn])
    processor = sandbox.build_processor(tokenizer, image_size=48, patch_size=12)
    model = sandbox.build_model(
        tokenizer,
        image_size=48,
        patch_size=12,
        width=width,
        mlp_width=4 * width,
        vision_layers=3,
        language_layers=4,
        heads=4,
    ).eval()
    parts, encoder = anatomy(model), Encoder(processor, drawn)
    encoder.batch(range(len(drawn)))  # decoded once, here: what is compared is the computing
    forget, retain = Encoder(processor, drawn[: people // 2]), Encoder(processor, drawn)
    npo = METHODS["npo"]
    settings = npo.settings(learning_rate=1e-5, epochs=1, retain_batches_per_forget_batch=1)
    config = TrainingConfig(batch_size=8, accumulation_steps=STEP // 8)

    def unlearn() -> None:
        terms = Terms(forget=forget, retain=retain, method=npo, settings=settings)
        train(copy.deepcopy(model), terms, config, label="NPO")

    return {
        "Fisher, per sample": lambda: fisher_diagonal(
            model, encoder.batches(8, share=share), parameters=parts.maskable
        ),
        "MANU statistics": lambda: activation_statistics(
            model, encoder.batches(8, share=share), mlps=parts.mlps, active_above=0.1
        ),
        "unlearning, NPO": unlearn,
    }


def work(out: Path, people: int, width: int) -> None:
    """One of the processes: seconds of each job, written by the first."""
    import torch

    from tasks.runtime.sharing import is_first, joined

    with joined():
        torch.set_num_threads(1)
        wait = torch.distributed.barrier if torch.distributed.is_initialized() else lambda: None
        seconds = {}
        for name, job in jobs(people, width).items():
            job()  # warms up
            wait()
            started = time.perf_counter()
            job()
            wait()
            seconds[name] = time.perf_counter() - started
        if is_first():
            out.write_text(json.dumps(seconds), encoding="utf-8")


def measured(count: int, people: int, width: int) -> dict[str, float]:
    """Seconds of each job when so many processes share it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(count), "-m", "scripts.processes", WORKER, str(out)]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, str(people), str(width)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        # Every job ran twice: to warm up, and to be timed.
        return {**found, "starting and loading": time.perf_counter() - started - 2 * sum(found.values())}


def main(
    processes: Annotated[int, typer.Option(min=2, help="How many share the work.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 2,
    people: Annotated[
        int, typer.Option(min=8, help="Half as many samples are forgotten, twice as many kept.")
    ] = 256,
    width: Annotated[int, typer.Option(min=16, help="Width of the model.")] = 384,
) -> None:
    """Time all jobs and print the table; exit status 1 if two processes gain less than the limit."""
    best: dict[int, dict[str, float]] = {1: {}, processes: {}}
    for number in range(rounds):
        for count in (1, processes) if number % 2 else (processes, 1):
            for name, seconds in measured(count, people, width).items():
                best[count][name] = min(seconds, best[count].get(name, seconds))
    typer.echo(
        f"{2 * people} samples, width {width}, steps of {STEP} to forget and {STEP} to keep, "
        f"{platform.machine()}, {os.cpu_count()} cores, one thread each, best of {rounds}"
    )
    typer.echo(f"| work | 1 process, s | {processes} processes, s | gain |\n|---|---:|---:|---:|")
    gains = {}
    for name, alone in best[1].items():
        shared = best[processes][name]
        gains[name] = alone / shared
        typer.echo(f"| {name} | {alone:.2f} | {shared:.2f} | {gains[name]:.2f} |")
    del gains["starting and loading"]
    if processes == 2 and min(gains.values()) < LIMIT:
        typer.echo(f"less than {LIMIT}: {min(gains, key=lambda name: gains[name])}")
        raise typer.Exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        typer.run(main)
