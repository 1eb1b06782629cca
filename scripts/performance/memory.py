"""Peak memory of Fisher passes on a processor, as JSON: python -m scripts.performance.memory 100M

A process's memory tells what a pass needs only where freed memory is gone from the process at once. glibc
keeps freed blocks for later, so that it also tells what passes before have left lying about: hence a process
of its own, started with every block above 64 KiB mapped and unmapped by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from scripts.performance.sizes import Subject

_UNMAPPED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # read by glibc when the process starts


def peaks(subject: Subject, device: str) -> dict[str, float]:
    """MiB that passes over the first batch need beyond the model, by name; see ``measured``.

    On a processor in a process of its own.
    """
    if device != "cpu":
        return measured(subject, device)
    import torch

    threads = torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.performance.memory", subject.size, f"--threads={threads}"],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | _UNMAPPED_AT_ONCE,
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(subject: Subject, device: str) -> dict[str, float]:
    """Peaks in MiB beyond the model, in this process.

    ``sums`` is the size of the weights that are measured, in float32; ``kept`` the peak of a forward pass
    with all that a backward pass needs; ``plain`` that of both passes and the gradients they leave;
    ``fisher`` that of the Fisher pass; ``loop`` that of one pass per sample.
    """
    from efface.models import anatomy
    from efface.saliency import fisher_diagonal
    from scripts.performance import recipes
    from scripts.performance.cases import backward, first, forward_kept
    from scripts.performance.timing import peak_mib

    model, batch = subject.model, subject.batches[0]
    names = anatomy(model).maskable

    def fisher() -> None:
        fisher_diagonal(model, [batch], parameters=names)

    fisher()  # libraries' own buffers are not counted
    return {
        "sums": sum(model.get_parameter(name).numel() for name in names) * 4 / 2**20,
        "kept": peak_mib(lambda: forward_kept(model, batch, names), device),
        "plain": peak_mib(lambda: backward(model, [batch], names), device),
        "fisher": peak_mib(fisher, device),
        "loop": peak_mib(lambda: recipes.one_sample_at_a_time(model, [first(batch, 2)], names), device),
    }


def main(size: str, threads: int = 1) -> None:
    """Measure on a processor and print."""
    import torch

    from scripts.performance.sizes import BATCH_SIZE, build

    torch.set_num_threads(threads)
    # Half the samples have a picture: the first batch is full.
    found = measured(build(size, samples=2 * BATCH_SIZE, device="cpu"), "cpu")
    typer.echo(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
