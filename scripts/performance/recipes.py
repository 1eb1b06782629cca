"""What the codes released with the papers do, in this project's own words: slow, for comparison."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.encoding.answers import nll

if TYPE_CHECKING:
    from efface.encoding import Inputs
    from efface.models import MLP


def one_sample_at_a_time(model: Any, batches: Sequence[Inputs], names: Sequence[str]) -> dict[str, Tensor]:
    """The Fisher diagonal by its definition: a backward pass per sample, every gradient squared and added."""
    model.requires_grad_(False)
    weights = {name: p.requires_grad_() for name, p in model.named_parameters() if name in set(names)}
    sums = {name: torch.zeros(p.shape, device=p.device) for name, p in weights.items()}
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            gradients = torch.autograd.grad(
                nll(model, {key: value[i : i + 1] for key, value in batch.items()}),
                list(weights.values()),
                allow_unused=True,
            )
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
                    copy = parameter.grad.detach().cpu().clone()
                    sums[name] = sums[name] + copy.float() ** 2
    model.zero_grad()
    return sums


@torch.no_grad()
def released_statistics(
    model: Any, batches: Sequence[Inputs], mlps: Sequence[MLP]
) -> dict[str, dict[str, Tensor]]:
    """MANU's: one walk over the data per statistic, each of which keeps every activation until it is done."""
    return {
        statistic: {
            name: _statistic(statistic, torch.cat(parts).float())
            for name, parts in _activations(model, batches, mlps).items()
            if parts
        }
        for statistic in ("abs", "freq", "var", "rms")
    }


def _activations(model: Any, batches: Sequence[Inputs], mlps: Sequence[MLP]) -> dict[str, list[Tensor]]:
    kept: dict[str, list[Tensor]] = {mlp.name: [] for mlp in mlps}

    def keep(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
        kept[name].append(args[0].detach().cpu().flatten(0, -2))

    handles = [
        model.get_submodule(mlp.down).register_forward_pre_hook(functools.partial(keep, mlp.name))
        for mlp in mlps
    ]
    for batch in batches:
        model(**{key: value for key, value in batch.items() if key != "labels"})
    for handle in handles:
        handle.remove()
    return kept


def _statistic(name: str, values: Tensor) -> Tensor:
    return {
        "abs": lambda: values.abs().mean(0),
        "freq": lambda: (values.abs() > 0.1).float().mean(0),
        "var": lambda: values.std(0),
        "rms": lambda: values.square().mean(0).sqrt(),
    }[name]()
