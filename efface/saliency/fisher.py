"""The diagonal of the empirical Fisher information, exactly, one sample at a time.

    F = (1 / |D|) sum_d [ grad L(d) ]^2          element-wise

Squaring the gradient of a whole batch instead gives a quantity up to a batch size smaller, and it depends on
which samples met. Squares are accumulated in float32 whatever the dtype of the weights: a float16 gradient of
1e-4 squares to zero.

For linear and convolutional layers, LoRA's factors among them, the gradient of each sample is the product of
what went in and of the gradient that came back, so one backward pass over a batch gives the per-sample
gradients of all its samples (``efface.saliency.layers``). Anything else is walked sample by sample. Either
way a gradient is used and freed as it comes out of the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from efface.encoding.answers import answer_log_probs
from efface.encoding.batches import Inputs, split, to_device
from efface.models.anatomy import image_token_id
from efface.processes import sum_over_processes
from efface.saliency.accumulators import Place, accumulators
from efface.saliency.layers import add_squares, layers_of

Unit = Literal["sample", "batch"]


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    parameters: Iterable[str] | None = None,
    unit: Unit = "sample",
    place: Place = "device",
    folder: Path | None = None,
) -> dict[str, Tensor]:
    """Mean squared gradient of the answer NLL with respect to each weight.

    The model is measured in evaluation mode and left as it was found, ``.grad`` and ``requires_grad``
    included. When ``torch.distributed`` is initialised the result is that of all processes' batches together.

    Args:
        model: a multimodal LLM, or one with LoRA adapters.
        batches: model inputs with ``labels``; all samples of a batch multimodal or all text-only. Of several
            processes each passes its share (``efface.processes.share``), which may be empty.
        parameters: names of the parameters to measure; None takes all that require a gradient.
        unit: ``sample`` squares the gradient of each sample's loss, ``batch`` the gradient of each batch's.
        place: where the sums are kept; see ``accumulators``. No influence on the result.
        folder: for sums kept on disk.

    Returns:
        Parameter name -> float32 tensor of the parameter's shape, values >= 0, where ``place`` says.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.

    Reference:
        arXiv:2502.11051, section on the saliency map; its released code squares batch gradients
        (``unit="batch"``).
    """
    chosen = choose(model, parameters)
    total = accumulators(chosen, place=place, folder=folder)
    return _averaged(model, total, _accumulate(model, batches, chosen, total, unit=unit))


def fisher_contrast(
    model: nn.Module,
    forget: Iterable[Inputs],
    preserve: Iterable[Inputs],
    *,
    counts: tuple[int, int],
    threshold: float = 1.0,
    parameters: Iterable[str] | None = None,
    unit: Unit = "sample",
    place: Place = "device",
    folder: Path | None = None,
) -> dict[str, Tensor]:
    """Forget Fisher minus ``threshold`` times preserve Fisher, in the memory of one of them.

    Its sign is all that a mask needs (``contrast_mask``). The two diagonals are never apart, so a weight
    whose ratio is within rounding of the threshold may fall on the other side of it.

    Args:
        model: as for ``fisher_diagonal``, like all that is not named here.
        forget: batches of what is to be forgotten.
        preserve: batches of what is to be kept.
        counts: samples (batches for ``unit="batch"``) of the two sets, over all processes.
        threshold: ratio from which a weight is salient, > 0.

    Raises:
        ValueError: if the batches hold other numbers of samples than ``counts`` says, or one set is empty.
    """
    if min(counts) < 1:
        raise ValueError(f"cannot compare the gradients of {counts[0]} and {counts[1]} samples: both must be")
    chosen = choose(model, parameters)
    total = accumulators(chosen, place=place, folder=folder)
    scales = (1 / counts[0], -threshold / counts[1])
    seen = [
        _accumulate(model, batches, chosen, total, unit=unit, scale=scale)
        for batches, scale in zip((forget, preserve), scales, strict=True)
    ]
    tally = _together(model, torch.tensor(seen), total)
    if tuple(tally) != counts:
        raise ValueError(f"the two sets hold {tally} samples, and `counts` says {[*counts]}")
    return total


def mean_gradient(
    model: nn.Module, batches: Iterable[Inputs], *, parameters: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Gradient of the mean answer NLL over all samples, in float32; arguments as for ``fisher_diagonal``.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.
    """
    chosen = choose(model, parameters)
    total = accumulators(chosen)
    count = 0
    with measuring(model, chosen), _as_they_come(chosen, lambda name, g: total[name].add_(g)):
        for batch in batches:
            batch = to_device(batch, next(model.parameters()).device)
            _backward(answer_log_probs(model, batch).nll.sum())
            count += len(batch["input_ids"])
    return _averaged(model, total, count)


def _averaged(model: nn.Module, total: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Sums over all processes, divided in place by their count of samples or batches."""
    if not total:
        raise ValueError("there is no parameter to measure: `parameters` is empty, or none trains")
    (tally,) = _together(model, torch.tensor([count]), total)
    if tally == 0:
        raise ValueError("cannot measure the gradients of no samples: `batches` is empty")
    for value in total.values():
        value.div_(tally)
    return total


def _together(model: nn.Module, counts: Tensor, total: Mapping[str, Tensor]) -> list[int]:
    """Turn sums, in place, into those of all processes, one tensor at a time on the model's device, where
    processes meet; returns the counts of all."""
    device = next(model.parameters()).device
    for tensor in (counts, *total.values()):
        meeting = tensor.to(device)
        sum_over_processes([meeting])
        if meeting is not tensor:
            tensor.copy_(meeting)
    return [int(count) for count in counts]


def choose(model: nn.Module, parameters: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """The named parameters, or all that require a gradient.

    Raises:
        ValueError: if a name is not a parameter of the model.
    """
    available = dict(model.named_parameters())
    if parameters is None:
        return {name: p for name, p in available.items() if p.requires_grad}
    names = list(parameters)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a parameter of {type(model).__name__}")
    return {name: available[name] for name in names}


@contextmanager
def measuring(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for the chosen parameters only; everything put back afterwards."""
    training = model.training
    flags = {p: p.requires_grad for p in model.parameters()}
    picked = set(map(id, chosen.values()))
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in picked)
        yield
    finally:
        model.train(training)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _accumulate(
    model: nn.Module,
    batches: Iterable[Inputs],
    chosen: Mapping[str, nn.Parameter],
    total: Mapping[str, Tensor],
    *,
    unit: Unit,
    scale: float = 1.0,
) -> int:
    """Add ``scale`` times the squared gradients; returns how many were squared."""
    layers = None if unit == "batch" else layers_of(model, chosen)
    count = 0

    def add(name: str, gradient: Tensor) -> None:
        total[name].add_(gradient.square_().to(total[name].device), alpha=scale)

    with measuring(model, chosen):
        for batch in batches:
            batch = to_device(batch, next(model.parameters()).device)
            size = 1 if unit == "batch" else len(batch["input_ids"])
            count += size
            if layers is not None and add_squares(model, batch, layers, total, scale):
                continue
            # The general way: one backward pass for each gradient that is squared.
            with _as_they_come(chosen, add):
                for part in [batch] if unit == "batch" else split(batch, image_token_id(model)):
                    _backward(answer_log_probs(model, part).nll.mean())
    return count


@contextmanager
def _as_they_come(chosen: Mapping[str, nn.Parameter], use: Callable[[str, Tensor], object]) -> Iterator[None]:
    """In backward passes, hand each gradient over in float32 and free it before the next one is computed."""

    def taken(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            use(name, parameter.grad.float())
        parameter.grad = None

    before = {parameter: parameter.grad for parameter in chosen.values()}
    handles = [
        parameter.register_post_accumulate_grad_hook(functools.partial(taken, name))
        for name, parameter in chosen.items()
    ]
    try:
        for parameter in before:
            parameter.grad = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before.items():
            parameter.grad = gradient


def _backward(loss: Tensor) -> None:
    """Backward pass; a parameter that the loss does not reach, as the vision tower of words, has none."""
    if loss.requires_grad:
        loss.backward()
