"""What the parts cost, as ratios to a plain pass over the same data.

    TQDM_DISABLE=1 python -m scripts.performance             the tiny model and one of 100 million weights
    python -m scripts.performance --sizes 7B --device cuda   LLaVA-1.5's size on a GPU

Jobs that are compared take turns in one process; a ratio is the median over rounds. On one thread the seconds
are processor seconds, so that other programs count only by the caches and memory they take. The functions
named ``released_...`` do what the code released with the papers does.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import typer
from torch import Tensor

from efface.encoding.answers import nll
from efface.models import anatomy
from scripts.subjects import Subject, build, random_samples

if TYPE_CHECKING:
    from efface.encoding import Inputs
    from efface.models import MLP

Row = tuple[str, str, str, str]
"""Case, size of the model, number, and what else there is to say."""
SAMPLES = {"tiny": 128, "100M": 32, "0.5B": 16, "7B": 32}


class Clock:
    """Seconds of jobs that take turns.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: runs of each job, after one to warm up.
    """

    def __init__(self, device: str, rounds: int):
        self.device, self.rounds = device, rounds

    def seconds(
        self, jobs: Mapping[str, Callable[[], object]], *, warm_up: bool = True
    ) -> dict[str, list[float]]:
        """Seconds of each job in each round."""
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(0 if warm_up else 1, self.rounds + 1):
            for name in list(jobs)[:: 1 if number % 2 else -1]:
                started = self._now()
                jobs[name]()
                elapsed = self._now() - started
                if number:
                    seconds[name].append(elapsed)
        return seconds

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def ratio(
    seconds: Mapping[str, Sequence[float]], job: str, plain: str, scale: float = 1.0
) -> tuple[str, str]:
    """How many times as long one job takes as another: median over rounds, and their range."""
    ratios = sorted(scale * a / b for a, b in zip(seconds[job], seconds[plain], strict=True))
    return f"{statistics.median(ratios):.3g} x", f"{ratios[0]:.3g} to {ratios[-1]:.3g}"


def fisher(subject: Subject, clock: Clock) -> Iterator[Row]:
    """The Fisher pass against a forward and backward pass, and the ways it replaces.

    The check of a first batch against single samples, which every Fisher pass makes once, falls into the
    warm-up.
    """
    from efface.saliency.fisher import SquaredGradients

    model, names = subject.model, anatomy(subject.model).maskable
    batches = subject.batches if subject.size == "tiny" else subject.batches[:1]
    pairs = [{key: value[:2] for key, value in batch.items()} for batch in batches]
    squares = SquaredGradients(model, parameters=names)
    seconds = _with_released(
        subject,
        clock,
        {
            "fisher": lambda: squares.add(batches),
            "plain": lambda: backward(model, batches, names),
            "loop": lambda: single_sample_fisher(model, pairs, names),
        },
        lambda: released_fisher(model, batches),
    )
    yield ("Fisher / forward + backward", subject.size, *ratio(seconds, "fisher", "plain"))
    yield ("loop over single samples / Fisher", subject.size, *ratio(seconds, "loop", "fisher", scale=4))
    yield ("released recipe / Fisher", subject.size, *ratio(seconds, "released", "fisher"))


def neurons(subject: Subject, clock: Clock) -> Iterator[Row]:
    """MANU's statistics against a plain forward pass, and against one walk per statistic."""
    from efface.neurons import activation_statistics

    model, mlps, batches = subject.model, anatomy(subject.model).mlps, subject.batches
    batches = batches[:1] if subject.size == "7B" else batches  # the released recipe stores every activation
    seconds = _with_released(
        subject,
        clock,
        {
            "statistics": lambda: activation_statistics(model, batches, mlps=mlps, active_above=0.1),
            "plain": lambda: forward(model, batches),
        },
        lambda: released_statistics(model, batches, mlps),
    )
    yield ("neuron statistics / forward", subject.size, *ratio(seconds, "statistics", "plain"))
    yield ("released recipe / neuron statistics", subject.size, *ratio(seconds, "released", "statistics"))


def masks(subject: Subject, clock: Clock) -> Iterator[Row]:
    """Size of a mask file, and seconds to write and read one."""
    from efface.saliency import load_mask, save_mask

    mask = random_mask(subject)
    count = sum(entry.numel() for entry in mask.values())
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        for _ in range(clock.rounds + 1):
            started = time.perf_counter()
            save_mask(mask, path, metadata={})
            for entry in load_mask(path)[0].values():
                entry.any()
            seconds.append(time.perf_counter() - started)
        bits = 8 * path.stat().st_size / count
    yield ("mask file", subject.size, f"{bits:.3g} bits per weight", f"{count / 1e6:.1f} million weights")
    yield ("save + load of a mask", subject.size, f"{min(seconds):.3g} s", "")


def epoch(subject: Subject, clock: Clock) -> Iterator[Row]:
    """An epoch of MMUnlearner against one of NPO with as many forget steps."""
    from efface.unlearning import METHODS, TrainingConfig
    from efface.unlearning.unlearn import unlearn

    half = len(subject.samples) // 4
    forget, retain, mask = subject.samples[:half], subject.samples[half:], random_mask(subject)

    def run(method: str, mask: Any = None, **settings: Any) -> None:
        unlearn(
            subject.model,
            subject.processor,
            method=method,
            forget=forget,
            retain=retain,
            mask=mask,
            settings=METHODS[method].settings(
                learning_rate=1e-9, epochs=1, retain_batches_per_forget_batch=1, **settings
            ),
            config=TrainingConfig(batch_size=8, precision=precision(clock.device)),
        )

    seconds = clock.seconds(
        {
            "npo": lambda: run("npo"),
            "mmunlearner": lambda: run("mmunlearner", mask),
            "released": lambda: run("mmunlearner", mask, variant="official_code"),
        }
    )
    yield ("MMUnlearner epoch / NPO epoch", subject.size, *ratio(seconds, "mmunlearner", "npo"))
    yield ("released schedule / NPO epoch", subject.size, *ratio(seconds, "released", "npo"))


def scoring(subject: Subject, clock: Clock) -> Iterator[Row]:
    """Scoring five answers per question in batches against one by one."""
    from efface.evaluation.scoring import score

    rows, tables = random_samples(16, options=5), {}

    def batched() -> None:
        tables["batched"] = score(
            subject.model, subject.processor, rows, batch_size=64, max_new_tokens=8
        ).iloc[::4]

    def single() -> None:
        tables["single"] = score(
            subject.model, subject.processor, rows[::4], batch_size=1, max_new_tokens=8, share_prefix=False
        )

    seconds = clock.seconds({"batched": batched, "single": single})
    difference = max(
        abs(a - b)
        for first, second in zip(*(tables[name]["option_logprobs"] for name in tables), strict=True)
        for a, b in zip(first, second, strict=True)
    )
    value, spread = ratio(seconds, "single", "batched", scale=4)
    note = f"{spread}; largest difference {difference:.1e} nats"
    yield ("one answer at a time / batches", subject.size, value, note)


def precision(device: str) -> Literal["fp32", "bf16"]:
    """The precision of training that a device computes fast."""
    return "fp32" if device == "cpu" else "bf16"


def _with_released(
    subject: Subject, clock: Clock, jobs: Mapping[str, Callable[[], object]], released: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of the jobs and of the released recipe; at 7B, where that takes minutes, it runs once."""
    if subject.size != "7B":
        return clock.seconds({**jobs, "released": released})
    seconds = clock.seconds(jobs)
    once = Clock(clock.device, 1).seconds({"released": released}, warm_up=False)
    return seconds | {"released": once["released"] * clock.rounds}


CASES = {"fisher": fisher, "neurons": neurons, "masks": masks, "epoch": epoch, "scoring": scoring}


def single_sample_fisher(model: Any, batches: Sequence[Inputs], names: Sequence[str]) -> dict[str, Tensor]:
    """Sums of squared gradients by their definition: a backward pass per sample."""
    model.requires_grad_(False)
    weights = {name: model.get_parameter(name).requires_grad_() for name in names}
    sums = {name: torch.zeros(p.shape, device=p.device) for name, p in weights.items()}
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            loss = nll(model, {key: value[i : i + 1] for key, value in batch.items()})
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.float().square()
    model.requires_grad_()
    return sums


def released_fisher(model: Any, batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """MMUnlearner's: batches of four; after each, every gradient of the model is copied to main memory, and
    its square added there."""
    sums = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for batch in batches:
        for start in range(0, len(batch["input_ids"]), 4):
            model.zero_grad()
            nll(model, {key: value[start : start + 4] for key, value in batch.items()}).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    sums[name] = sums[name] + parameter.grad.detach().cpu().float() ** 2
    model.zero_grad()
    return sums


@torch.no_grad()
def released_statistics(model: Any, batches: Sequence[Inputs], mlps: Sequence[MLP]) -> dict[str, Any]:
    """MANU's: one walk over the data per statistic, each of which stores every activation."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "abs": lambda values: values.abs().mean(0),
        "freq": lambda values: (values.abs() > 0.1).float().mean(0),
        "var": lambda values: values.std(0),
        "rms": lambda values: values.square().mean(0).sqrt(),
    }
    results: dict[str, Any] = {}
    for statistic, function in functions.items():
        activations: dict[str, list[Tensor]] = {mlp.name: [] for mlp in mlps}

        def store(name: str, module: Any, args: tuple[Tensor, ...], into: Any = activations) -> None:
            into[name].append(args[0].detach().cpu().flatten(0, -2))

        handles = [
            model.get_submodule(mlp.down).register_forward_pre_hook(functools.partial(store, mlp.name))
            for mlp in mlps
        ]
        forward(model, batches)
        for handle in handles:
            handle.remove()
        results[statistic] = {n: function(torch.cat(v).float()) for n, v in activations.items() if v}
    return results


def backward(model: Any, batches: Sequence[Inputs], names: Sequence[str]) -> None:
    """The gradient of each batch's loss for the named weights."""
    model.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_()
    for batch in batches:
        nll(model, batch).backward()
        model.zero_grad(set_to_none=True)
    model.requires_grad_()


@torch.no_grad()
def forward(model: Any, batches: Sequence[Inputs]) -> None:
    """A forward pass of each batch."""
    for batch in batches:
        model(**{key: value for key, value in batch.items() if key != "labels"})


def random_mask(subject: Subject, density: float = 0.3) -> dict[str, Tensor]:
    """A mask of what may be masked."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: subject.model.get_parameter(name).shape for name in anatomy(subject.model).maskable}
    return {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}


def main(
    sizes: Annotated[str, typer.Option(help="Sizes, with commas: tiny, 100M, 0.5B, 7B.")] = "tiny,100M",
    cases: Annotated[str, typer.Option(help=f"Cases, with commas: {', '.join(CASES)}.")] = ",".join(CASES),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure and print a table in Markdown."""
    torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device != "cpu" else platform.machine()
    typer.echo(f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}\n")
    typer.echo("| case | size | measured | |\n|---|---|---|---|")
    for size in sizes.split(","):
        subject = build(size, samples=SAMPLES[size], device=device)
        for case in cases.split(","):
            for row in CASES[case](subject, Clock(device, rounds)):
                typer.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    typer.run(main)
