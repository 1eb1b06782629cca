"""What looking inside a model costs: python -m benchmarks.saliency

On a model of the sandbox's size, with batches of the same samples throughout:

- the exact per-sample Fisher pass against a plain forward and backward pass in batches of 8 (at most 2.0
  times as long), and against the loop over single samples that it replaces;
- MANU's activation statistics against a plain forward pass (at most 1.15 times as long).

The contenders take turns, in one order and then in the other, so that a slow moment of the machine and what
the one before left in the caches meet all of them. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import io
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tasks import environment
from tasks.params import load_params

environment.apply()

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.data.encoding import Inputs
    from efface.data.samples import Sample

FISHER_LIMIT, STATISTICS_LIMIT = 2.0, 1.15
"""Highest acceptable ratios to the plain pass."""

BATCH_SIZE = 8


def samples(count: int) -> list[Sample]:
    """Half with a picture, half without, with answers of one to six words."""
    import numpy as np
    from PIL import Image

    from efface.data.samples import Sample

    made = []
    for i in range(count):
        pictured = i < count // 2
        pixels = np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        row = {
            "sample_id": str(i),
            "entity_id": f"fictitious/{i:03d}",
            "split": "retain",
            "part": "train",
            "modality": "multimodal" if pictured else "text",
            "task": "qa",
            "attribute": "residence",
            "image": buffer.getvalue() if pictured else None,
            "question": "In which city does this person live?"
            if pictured
            else f"Where does person {i} live?",
            "answer": " ".join(["over", "there", "by", "the", "old", "harbour"][: 1 + i % 6]),
            "pair_id": str(i),
        }
        made.append(Sample.from_row(row))
    return made


def build(device: str) -> tuple[PreTrainedModel, list[Inputs]]:
    """A model of the sandbox's shape and the batches every contender gets."""
    import torch

    from efface.data.encoding import Encoder, to_device
    from efface.models import sandbox

    torch.manual_seed(0)
    base, drawn = load_params().base, samples(16 * BATCH_SIZE)
    # As many words as the sandbox's vocabulary has.
    words = [f"word{i}" for i in range(400)]
    tokenizer = sandbox.build_tokenizer([*words, *(f"{s.question} {s.answer}" for s in drawn)])
    processor = sandbox.build_processor(tokenizer, image_size=base.image_size, patch_size=base.patch_size)
    shape = {
        key: getattr(base, key)
        for key in (
            "image_size",
            "patch_size",
            "width",
            "mlp_width",
            "vision_layers",
            "language_layers",
            "heads",
        )
    }
    model = sandbox.build_model(tokenizer, **shape).to(device).eval()
    return model, [to_device(batch, model.device) for batch in Encoder(processor, drawn).batches(BATCH_SIZE)]


def contenders(model: PreTrainedModel, batches: list[Inputs]) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import torch

    from efface.importance import activation_statistics
    from efface.models import anatomy
    from efface.models.answers import nll
    from efface.saliency import fisher_diagonal

    parts = anatomy(model)
    single = [
        {key: value[i : i + 1] for key, value in batch.items()}
        for batch in batches
        for i in range(len(batch["input_ids"]))
    ]

    def backward(of: list[Inputs], *, square: bool) -> None:
        weights = [p for name, p in model.named_parameters() if name in chosen]
        total = [torch.zeros_like(p) for p in weights] if square else []
        for batch in of:
            nll(model, batch).backward()
            for sum_, p in zip(total, weights, strict=False):
                if p.grad is not None:
                    sum_.add_(p.grad.square())
            model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**{key: value for key, value in batch.items() if key != "labels"})

    chosen = set(parts.maskable)
    return {
        "forward and backward": lambda: backward(batches, square=False),
        "Fisher, per sample": lambda: fisher_diagonal(model, batches, parameters=parts.maskable),
        "Fisher, loop over samples": lambda: backward(single, square=True),
        "forward": forward,
        "MANU statistics": lambda: activation_statistics(model, batches, mlps=parts.mlps, active_above=0.1),
    }


def rounds(
    jobs: dict[str, Callable[[], object]], repetitions: int, synchronize: Callable[[], object] | None
) -> dict[str, list[float]]:
    """Seconds of each job in each round; every round runs all of them, every other round backwards.

    On a CPU they are processor seconds of all threads, so that what other programs take does not count.
    """
    clock = time.perf_counter if synchronize else time.process_time
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repetition in range(repetitions + 1):
        for name in list(jobs)[:: 1 if repetition % 2 else -1]:
            wait()
            started = clock()
            jobs[name]()
            wait()
            if repetition:  # the first round warms up
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], job: str, plain: str) -> float:
    """How many times as long one job takes as the other: the median over rounds."""
    return statistics.median(a / b for a, b in zip(seconds[job], seconds[plain], strict=True))


def peak_mib(job: Callable[[], object], device: str) -> float:
    """Memory a job needs beyond what is there before it starts, in MiB: the process's on a CPU, the GPU's."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measured() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        job()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = context.Process(target=measured)
    process.start()
    process.join()
    return float(receiver.recv())


def main(
    repetitions: Annotated[int, typer.Option(min=1, help="Rounds.")] = 14,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Time all contenders and print the table; exit status 1 if a limit is passed."""
    import torch

    model, batches = build(device)
    jobs = contenders(model, batches)
    count = sum(len(batch["input_ids"]) for batch in batches)
    memory = {name: peak_mib(job, device) for name, job in jobs.items()}
    seconds = rounds(jobs, repetitions, torch.cuda.synchronize if device != "cpu" else None)
    fisher = ratio(seconds, "Fisher, per sample", "forward and backward")
    single = ratio(seconds, "Fisher, loop over samples", "forward and backward")
    manu = ratio(seconds, "MANU statistics", "forward")
    machine = (
        torch.cuda.get_device_name()
        if device != "cpu"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    )
    typer.echo(
        f"{sum(p.numel() for p in model.parameters()):,} weights, {count} samples in batches of "
        f"{BATCH_SIZE}, {machine}, medians of {repetitions}"
    )
    typer.echo("| pass | ms per sample | peak MiB |\n|---|---|---|")
    for name, values in seconds.items():
        typer.echo(f"| {name} | {1000 * statistics.median(values) / count:.2f} | {memory[name]:.0f} |")
    typer.echo(f"Fisher per sample / forward and backward: {fisher:.2f} (at most {FISHER_LIMIT})")
    typer.echo(f"loop over samples / forward and backward: {single:.2f}")
    typer.echo(f"MANU statistics / forward: {manu:.2f} (at most {STATISTICS_LIMIT})")
    if fisher > FISHER_LIMIT or manu > STATISTICS_LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
