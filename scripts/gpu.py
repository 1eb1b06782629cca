"""Checks and costs of everything on this GPU, as one table in eight minutes.

    python -m scripts.gpu                                # cuda; LLaVA-1.5's size with random weights
    python -m scripts.gpu --device cpu --size tiny       # the same script on a processor

Three parts: the same numbers as on a processor, by the sandbox's model; costs and memory at a real size
against their goals; and the sandbox's world up to the scores (``--world laptop``). A row that misses its
goal says so, and the script then ends with status 1. It needs the library alone; the world needs
``efface[pipeline]``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from efface.encoding import to_device
from efface.models import anatomy
from efface.models.memory import estimate_memory
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.evaluation import EvaluationCallback
from efface.unlearning.unlearn import unlearn
from scripts import performance
from scripts.performance import SAMPLES, Clock, ratio
from scripts.subjects import Subject, build

Row = tuple[str, str, str, bool]
"""Case, measured, goal, whether it is met."""
STAGES = (
    *("benchmark", "prepare", "split", "base", "vanilla", "retrained", "saliency", "importance"),
    *("score base", "score vanilla"),
    *("unlearn mmunlearner", "unlearn npo", "prune manu"),
    *(f"evaluate {model}" for model in ("base", "vanilla", "retrained", "mmunlearner", "npo", "manu")),
)


def parity(device: str) -> Iterator[Row]:
    """The sandbox's model on the device against the same model on the processor, in float32."""
    from efface.evaluation.scoring import score
    from efface.neurons import activation_statistics
    from efface.saliency import fisher_diagonal
    from scripts.subjects import random_samples

    cpu = build("tiny", samples=32, device="cpu")
    gpu: Any = copy.deepcopy(cpu.model)
    gpu.to(device)
    batches = [to_device(batch, gpu.device) for batch in cpu.batches]
    one = fisher_diagonal(cpu.model, cpu.batches, parameters=anatomy(cpu.model).maskable)
    # The gradient of a key bias is 0, and what is measured of it rounding.
    largest = max(value.max() for value in one.values())
    names = [name for name, value in one.items() if value.max() > 1e-12 * largest]
    two = fisher_diagonal(gpu, batches, parameters=names)
    worst = max(_relative(two[name], one[name]) for name in names)
    yield ("Fisher, largest difference relative to a tensor's largest", f"{worst:.1e}", "1e-3", worst <= 1e-3)
    half: Any = copy.deepcopy(gpu).to(torch.bfloat16)
    pictures = {"pixel_values": torch.bfloat16}
    halved = [{key: v.to(pictures.get(key, v.dtype)) for key, v in batch.items()} for batch in batches]
    at_once = fisher_diagonal(half, halved, parameters=names)
    single = performance.single_sample_fisher(half, halved, names)
    count = sum(len(batch["input_ids"]) for batch in halved)
    worst = max(_relative(at_once[name] * count, single[name]) for name in names)
    yield ("Fisher in bfloat16, batches against single samples", f"{worst:.1e}", "5e-2", worst <= 5e-2)
    level = {name: one[name].median() for name in names}
    same = [((one[n] >= level[n]) == (two[n].cpu() >= level[n])).float().mean().item() for n in names]
    yield ("masks, bits that agree", f"{min(same):.5f}", ".999", min(same) >= 0.999)

    mlps = anatomy(cpu.model).mlps
    first = activation_statistics(cpu.model, cpu.batches, mlps=mlps, active_above=0.1)
    second = activation_statistics(gpu, batches, mlps=mlps, active_above=0.1)
    worst = max(
        _relative(getattr(second[name], key), getattr(first[name], key))
        for name in first
        for key in ("sum_abs", "sum_square")
    )
    yield ("neuron statistics, the same", f"{worst:.1e}", "1e-3", worst <= 1e-3)

    mask = performance.random_mask(cpu)
    on_cpu, on_gpu = _train(cpu, cpu.model, mask, steps=1), _train(cpu, gpu, mask, steps=1)
    worst = max(_relative(on_gpu[name], on_cpu[name]) for name in on_cpu if name in names or name not in one)
    yield ("weights after a masked step", f"{worst:.1e}", "1e-2", worst <= 1e-2)

    whole, again = (_train(cpu, gpu, mask, steps=4) for _ in range(2))
    worst = max(_relative(again[name], whole[name]) for name in names)
    yield ("weights of a repeated run", f"{worst:.1e}", "1e-2", worst <= 1e-2)
    with _deterministic():
        whole, resumed = (_train(cpu, gpu, mask, steps=4, stop_after=end) for end in (0, 2))
    equal = all(torch.equal(whole[name], resumed[name]) for name in whole)
    yield (
        "resumed run by deterministic algorithms, bit for bit",
        "equal" if equal else "differ",
        "equal",
        equal,
    )

    rows = random_samples(16)
    answers = [
        score(model, cpu.processor, rows, batch_size=8, max_new_tokens=8)["generation"].tolist()
        for model in (cpu.model, gpu)
    ]
    share = sum(a == b for a, b in zip(*answers, strict=True)) / len(rows)
    yield ("generations that agree", f"{share:.2f}", "1", share == 1)


def costs(
    case: Callable[[Subject, Clock], Iterator[performance.Row]], subject: Subject, clock: Clock
) -> Iterator[Row]:
    """Ratios of one case of `scripts.performance` against their goals."""
    goals = {
        "Fisher / forward + backward": (1.5, "at most"),
        "released recipe / Fisher": (5.0, "at least"),
        "neuron statistics / forward": (1.1, "at most"),
        "MMUnlearner epoch / NPO epoch": (1.2, "at most"),
    }
    for name, size, value, note in case(subject, clock):
        goal, bound = goals.get(name, (None, ""))
        number = float(value.split()[0])
        met = goal is None or (number <= goal if bound == "at most" else number >= goal)
        yield (f"{name}, {size}", f"{value} ({note})", f"{bound} {goal} x" if goal else "", met)


def lora_costs(subject: Subject, clock: Clock) -> Iterator[Row]:
    """An epoch of MMUnlearner on LoRA factors against one of NPO, and its memory against the estimate."""
    from efface.models.lora import Lora, add_lora

    lora = Lora(rank=16, alpha=32, dropout=0.0, components=("language",))
    parts = anatomy(subject.model)
    estimate = estimate_memory(subject.model, parts, measured=(), lora=lora).unlearning
    adapter = add_lora(subject.model, lora, seed=0)
    trained = [name for name, p in subject.model.named_parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    mask = {
        name: torch.rand(subject.model.get_parameter(name).shape, generator=generator) < 0.3
        for name in trained
    }
    half = len(subject.samples) // 4

    def run(method: str, masked: bool, batch_size: int = 8) -> None:
        unlearn(
            subject.model,
            subject.processor,
            method=method,
            forget=subject.samples[:half],
            retain=subject.samples[half:],
            mask=mask if masked else None,
            settings=METHODS[method].settings(
                learning_rate=1e-9, epochs=1, retain_batches_per_forget_batch=1
            ),
            config=TrainingConfig(batch_size=batch_size, precision=performance.precision(clock.device)),
            adapter=adapter,
        )

    seconds = clock.seconds(
        {"mmunlearner": lambda: run("mmunlearner", True), "npo": lambda: run("npo", False)}
    )
    value, spread = ratio(seconds, "mmunlearner", "npo")
    met = float(value.split()[0]) <= 1.2
    yield ("MMUnlearner epoch / NPO epoch, LoRA", f"{value} ({spread})", "at most 1.2 x", met)
    yield from _against(
        f"memory of unlearning with LoRA, {subject.size}",
        clock.device,
        lambda size: run("mmunlearner", True, size),
        estimate,
    )


def memory(subject: Subject, device: str) -> Iterator[Row]:
    """The memory of a Fisher pass over vision and projector against what `tasks inspect` prints."""
    from efface.saliency import fisher_diagonal

    parts = anatomy(subject.model)
    names = [name for name in parts.maskable if parts.group_of(name) != "language"]
    estimate = estimate_memory(subject.model, parts, measured=names)
    floats = 4 * sum(p.numel() for p in subject.model.parameters())
    saved = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    # The estimate is of two diagonals and the gradients, in float32; this pass has one diagonal, no gradients
    # of weights, and weights as saved.
    selectable = 4 * sum(subject.model.get_parameter(name).numel() for name in names)

    def run(size: int) -> None:
        rows = {key: value[:size] for key, value in subject.batches[0].items()}
        fisher_diagonal(subject.model, [rows], parameters=names)

    yield from _against(
        f"memory of a Fisher pass, {subject.size}",
        device,
        run,
        estimate.saliency - (floats - saved) - 2 * selectable,
    )


def world(profile: str, folder: Path) -> Iterator[Row]:
    """The sandbox's world with a profile, stage by stage, in a folder of its own."""
    root = Path(__file__).resolve().parent.parent
    for name in ("profiles", "dvc.yaml"):
        (folder / name).symlink_to(root / name)
    shutil.copy(root / "params.yaml", folder)
    (folder / "data" / "masks").mkdir(parents=True)
    shutil.copy(root / "data" / "masks" / "none.safetensors", folder / "data" / "masks")
    environment = {**os.environ, "PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
    for stage in (f"use {profile}", *STAGES):
        started = time.perf_counter()
        command = [sys.executable, "-m", "tasks", *stage.split()]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        last = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()[-1:]
        note = last[0][:100] if last else ""
        yield (f"stage {stage}", f"{time.perf_counter() - started:.0f} s; {note}", "", result.returncode == 0)


def _train(
    subject: Subject, model: Any, mask: dict[str, torch.Tensor], *, steps: int, stop_after: int = 0
) -> dict[str, torch.Tensor]:
    """Weights after so many steps of MMUnlearner on a copy of the model; stopped in between and resumed."""
    model = copy.deepcopy(model)
    half = len(subject.samples) // 2
    config = TrainingConfig(batch_size=4, checkpoint_every=1)
    with tempfile.TemporaryDirectory() as folder:
        for end in (stop_after, steps):
            if not end:
                continue
            evaluation = _Stop(every=end, sets={}, batch_size=1) if end < steps else None
            trained = copy.deepcopy(model)
            try:
                unlearn(
                    trained,
                    subject.processor,
                    method="mmunlearner",
                    forget=subject.samples[:half],
                    retain=subject.samples[half:],
                    mask=mask,
                    settings=METHODS["mmunlearner"].settings(learning_rate=1e-4, steps=steps),
                    config=config,
                    checkpoints=Checkpoints(Path(folder) / "run", key="run"),
                    evaluation=evaluation,
                )
            except InterruptedError:
                continue
    return {name: p.detach().cpu() for name, p in trained.named_parameters()}


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Without this, attention on a GPU adds up its gradients in any order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class _Stop(EvaluationCallback):
    """Ends the run at the first measurement, as a machine that is switched off does."""

    def __call__(self, model: Any) -> dict[str, float]:
        raise InterruptedError


def _relative(one: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference as a share of the largest value."""
    scale = reference.double().abs().max().item() or 1.0
    return (one.cpu().double() - reference.cpu().double()).abs().max().item() / scale


def _peak(job: Callable[[], object]) -> int:
    """Bytes that the GPU holds at most while a job runs, weights included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    job()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _against(case: str, device: str, run: Callable[[int], object], estimate: int) -> Iterator[Row]:
    """Memory of a job against an estimate without activations, which grow with the samples of a batch."""
    if device == "cpu":
        return
    two, four = (_peak(functools.partial(run, size)) for size in (2, 4))
    per_sample = (four - two) / 2
    measured = two - 2 * per_sample
    share = estimate / measured - 1
    value = (
        f"{measured / 2**30:.1f} GiB and {per_sample / 2**30:.2f} per sample of a batch; estimated "
        f"{estimate / 2**30:.1f} ({share:+.0%})"
    )
    yield (case, value, "within 15 %", abs(share) <= 0.15)


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    size: Annotated[str, typer.Option(help="tiny, 100M, 0.5B or 7B.")] = "7B",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of what is timed.")] = 2,
    profile: Annotated[
        str | None, typer.Option("--world", help="Run a profile, too: laptop or quick.")
    ] = None,
) -> None:
    """Measure and print a table in Markdown."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"device is cuda and torch {torch.__version__} sees no GPU; try --device cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        needed = {"7B": 48, "0.5B": 16}.get(size, 2)  # weights, Fisher sums, activations
        if free < needed * 2**30:
            raise SystemExit(
                f"{name} has {free / 2**30:.0f} GiB free and --size {size} takes about {needed}; "
                "try --size 0.5B"
            )
    typer.echo(f"{name}, torch {torch.__version__}, Python {platform.python_version()}\n")
    typer.echo("| case | measured | goal | |\n|---|---|---|---|")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for row in _rows(device, size, rounds, profile, Path(folder)):
            typer.echo(f"| {' | '.join(row[:3])} | {'met' if row[3] else '**missed**'} |")
            if not row[3]:
                missed.append(row[0])
    if missed:
        raise SystemExit(f"{len(missed)} missed: {', '.join(missed)}")


def _rows(device: str, size: str, rounds: int, profile: str | None, folder: Path) -> Iterator[Row]:
    clock = Clock(device, rounds)
    yield from _part("parity", lambda: parity(device))
    subject = build(size, samples=SAMPLES[size], device=device)
    yield from _part("memory", lambda: memory(subject, device))
    # The weights, gradients of two terms and moments of 7B, in float32, take 132 GiB: LoRA below.
    smaller = build("0.5B", samples=SAMPLES["7B"], device=device) if size == "7B" else subject
    for case in (performance.fisher, performance.neurons, performance.scoring, performance.epoch):
        trained = smaller if case is performance.epoch else subject
        yield from _part(case.__name__, functools.partial(costs, case, trained, clock))
    yield from _part("LoRA", lambda: lora_costs(subject, clock))
    if profile is not None:
        yield from world(profile, folder)


def _part(name: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a part; one that ends in an error is a missed row, and the other parts still run."""
    try:
        yield from rows()
    except Exception as error:  # noqa: BLE001  # whatever breaks on a GPU is a result
        traceback.print_exc()
        yield (name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", "", False)


if __name__ == "__main__":
    typer.run(main)
