"""The cases: each measures a subject and gives the rows of its table."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efface.encoding.answers import nll
from efface.models import anatomy
from scripts.performance import recipes
from scripts.performance.memory import peaks
from scripts.performance.sizes import Subject, made_samples
from scripts.performance.timing import Clock, Row

if TYPE_CHECKING:
    from efface.encoding import Inputs


def fisher(subject: Subject, clock: Clock) -> list[Row]:
    """The exact per-sample Fisher pass against a forward and backward pass, and the ways it replaces."""
    from efface.saliency import fisher_diagonal

    model, size = subject.model, subject.size
    names = anatomy(model).maskable
    # Setting up and dividing by the count happen once per run: over one small batch they would weigh much.
    batch = subject.batches if size == "tiny" else subject.batches[:1]
    two, four = [first(part, 2) for part in batch], [first(part, 4) for part in batch]
    measure = functools.partial(fisher_diagonal, model, parameters=names)
    loop = functools.partial(recipes.one_sample_at_a_time, model, names=names)
    times = clock.measure(
        {
            "plain": lambda: backward(model, batch, names),
            "all": lambda: backward(model, batch, None),
            "fisher": lambda: measure(batch),
            "loop": lambda: loop(two),
            "released": lambda: recipes.released_fisher(model, four),
        }
    )
    tokens, count = batch[0]["input_ids"].shape[1], 8 * len(batch)
    each = f"{count} samples of {tokens} tokens, {1000 * times.median('fisher') / count:.3g} ms each"
    return [
        times.row(
            "Fisher / forward + backward for the same weights", size, "fisher", "plain", limit=1.3, note=each
        ),
        times.row("Fisher / forward + backward for all weights", size, "fisher", "all"),
        times.row(
            "loop over single samples / Fisher", size, "loop", "fisher", limit=5, at_most=False, scale=4
        ),
        times.row(
            "loop over single samples / forward + backward for the same weights",
            size,
            "loop",
            "plain",
            scale=4,
            note="as much as a Fisher pass that cost nothing would gain over the loop",
        ),
        times.row("released recipe / Fisher", size, "released", "fisher", scale=2),
        # Of a few MiB the allocator's own needs hide everything.
        *([] if size == "tiny" else _memory(subject, clock.device)),
    ]


def _memory(subject: Subject, device: str) -> list[Row]:
    found = peaks(subject, device)
    parts = {
        "in all": "fisher",
        "sums": "sums",
        "activations": "kept",
        "forward + backward": "plain",
        "loop over samples": "loop",
    }
    note = "MiB: " + ", ".join(f"{said} {found[name]:.0f}" for said, name in parts.items())
    extra = (found["fisher"] - found["kept"]) / found["sums"]
    return [
        Row("Fisher, memory beyond activations / its sums", subject.size, extra, "x", 1.1, note=note),
        Row("Fisher, memory / that of forward + backward", subject.size, found["fisher"] / found["plain"]),
    ]


def statistics(subject: Subject, clock: Clock) -> list[Row]:
    """MANU's statistics against a plain forward pass, and against a walk per statistic."""
    from efface.neurons import activation_statistics

    model, mlps, size = subject.model, anatomy(subject.model).mlps, subject.size
    clock = Clock(clock.device, 2 * clock.rounds)
    times = clock.measure(
        {
            "plain": lambda: _forward(model, subject.batches),
            "manu": lambda: activation_statistics(model, subject.batches, mlps=mlps, active_above=0.1),
            "released": lambda: recipes.released_statistics(model, subject.batches, mlps),
        }
    )
    return [
        times.row("MANU statistics / forward", size, "manu", "plain", limit=1.08),
        times.row("released recipe / MANU statistics", size, "released", "manu"),
    ]


def mask_file(subject: Subject, clock: Clock) -> list[Row]:
    """Bits and seconds of writing and reading a mask."""
    from efface.saliency import load_mask, save_mask

    mask = _mask(subject, 0.3)
    count = sum(entry.numel() for entry in mask.values())
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        for _ in range(clock.rounds + 1):
            started = time.perf_counter()
            save_mask(mask, path, metadata={})
            found, _metadata = load_mask(path)
            last = [found[name] for name in found][-1]
            seconds.append(time.perf_counter() - started)
            del last
        bits = 8 * path.stat().st_size / count
    best = min(seconds) * 8e9 / count
    note = f"from {count / 1e6:.1f} million; {1000 * min(seconds):.3g} ms, packing and unpacking included"
    small = subject.size == "tiny"
    return [
        Row("mask file", subject.size, bits, "bits per weight", None if small else 1.01),
        Row("save + load of 8e9 weights", subject.size, best, "s", None if small else 10, note=note),
    ]


def epoch(subject: Subject, clock: Clock) -> list[Row]:
    """An epoch of MMUnlearner against one of NPO with as many forget steps, and where the time goes."""
    from efface.encoding import Encoder
    from efface.unlearning import METHODS, TrainingConfig, unlearn

    pictured = [s for s in subject.samples if s.image_bytes is not None]
    written = [s for s in subject.samples if s.image_bytes is None]
    forget, retain = pictured[: len(pictured) // 2], pictured[len(pictured) // 2 :] + written
    mask = _mask(subject, 0.3)
    config = TrainingConfig(batch_size=8)
    short = {"learning_rate": 1e-9, "epochs": 1, "retain_batches_per_forget_batch": 1}

    def run(method: str, settings: dict[str, Any], mask: Any) -> None:
        unlearn(
            subject.model,
            subject.processor,
            method=method,
            forget=forget,
            retain=retain,
            mask=mask,
            settings=METHODS[method].settings(**short, **settings),
            config=config,
        )

    times = clock.measure(
        {
            "npo": lambda: run("npo", {"beta": 0.1}, None),
            "mmunlearner": lambda: run("mmunlearner", {"variant": "paper"}, mask),
            "released": lambda: run("mmunlearner", {"variant": "official_code"}, mask),
            "encoding": lambda: Encoder(subject.processor, forget + retain[: len(forget)]).batch(
                range(2 * len(forget))
            ),
        }
    )
    size, beside = subject.size, len(retain) / len(forget)
    return [
        times.row(
            "MMUnlearner epoch / NPO epoch, equal forget steps", size, "mmunlearner", "npo", limit=1.15
        ),
        times.row(
            "released schedule / NPO epoch",
            size,
            "released",
            "npo",
            note=f"retain set: {beside:.0f} x",
        ),
        times.row(
            "encoding pictures and text / MMUnlearner epoch",
            size,
            "encoding",
            "mmunlearner",
            note="first epoch only: later ones find it in memory",
        ),
    ]


def scoring(subject: Subject, clock: Clock) -> list[Row]:
    """Scoring five answers per question together against one by one."""
    from efface.evaluation import score

    rows, asked = made_samples(16, options=5), subject.model
    tables: dict[str, Any] = {}

    def together() -> None:
        tables["together"] = score(asked, subject.processor, rows, batch_size=64, max_new_tokens=8)

    def single() -> None:
        options = {"batch_size": 1, "max_new_tokens": 8, "share_prefix": False}
        tables["single"] = score(asked, subject.processor, rows[::4], **options)

    times = clock.measure({"together": together, "single": single})
    pairs = zip(
        tables["single"]["option_logprobs"], tables["together"]["option_logprobs"].iloc[::4], strict=True
    )
    worst = max(abs(a - b) for one, many in pairs for a, b in zip(one, many, strict=True))
    rate = len(rows) / times.median("together")
    return [
        times.row(
            "one answer at a time / scoring engine, 5 answers",
            subject.size,
            "single",
            "together",
            limit=4,
            at_most=False,
            scale=4,
            note=f"{rate:.1f} samples/s together; largest difference {worst:.1e} nats",
        )
    ]


CASES: dict[str, Callable[[Subject, Clock], list[Row]]] = {
    "fisher": fisher,
    "statistics": statistics,
    "mask_file": mask_file,
    "epoch": epoch,
    "scoring": scoring,
}
"""By name; each may train the model, by next to nothing."""


def growth(subject: Subject, clock: Clock, jobs: str) -> float:
    """Seconds of one pass over the subject's batches: ``fisher``, ``statistics`` or ``plain``."""
    from efface.neurons import activation_statistics
    from efface.saliency import fisher_diagonal

    parts = anatomy(subject.model)
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: backward(subject.model, subject.batches, parts.maskable),
        "fisher": lambda: fisher_diagonal(subject.model, subject.batches, parameters=parts.maskable),
        "statistics": lambda: activation_statistics(
            subject.model, subject.batches, mlps=parts.mlps, active_above=0.1
        ),
    }
    return clock.measure({jobs: work[jobs]}).median(jobs)


def first(batch: Inputs, count: int) -> Inputs:
    """The first samples of a batch."""
    return {key: value[:count] for key, value in batch.items()}


def forward_kept(model: Any, batch: Inputs, names: list[str]) -> None:
    """A forward pass with everything a backward pass would need."""
    _only(model, names)
    losses = nll(model, batch)
    del losses
    model.requires_grad_()


def backward(model: Any, batches: list[Inputs], names: list[str] | None) -> None:
    """The plain pass: the gradient of each batch's loss for the named weights, or for all."""
    if names is not None:
        _only(model, names)
    for batch in batches:
        nll(model, batch).backward()
        model.zero_grad(set_to_none=True)
    model.requires_grad_()


def _only(model: Any, names: list[str]) -> None:
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


@torch.no_grad()
def _forward(model: Any, batches: list[Inputs]) -> None:
    for batch in batches:
        model(**{key: value for key, value in batch.items() if key != "labels"})


def _mask(subject: Subject, share: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = anatomy(subject.model).maskable
    return {
        name: torch.rand(subject.model.get_parameter(name).shape, generator=generator) < share
        for name in names
    }
