"""Gradients by parameter name: summed over processes, masked, clipped and added."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from efface.masks import Masks
from efface.processes import sum_over_processes

Gradient = dict[str, Tensor]
"""Gradients by parameter name, without the parameters that the loss does not reach."""


@contextmanager
def training_only(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Within this context only the named parameters train."""
    frozen = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def training_beside(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within this context only these modules train, each attached to the model's module of its key as
    ``trained``; its method ``replace``, a forward hook, says what that module's output becomes."""
    with ExitStack() as stack:
        stack.enter_context(training_only(model, ()))
        for name, trained in modules.items():
            place = model.get_submodule(name)
            place.add_module("trained", trained)
            stack.callback(delattr, place, "trained")
            stack.callback(place.register_forward_hook(trained.replace).remove)  # type: ignore[arg-type]
        yield


@contextmanager
def moved_along(trained: Mapping[str, nn.Parameter], gradient: Gradient, radius: float) -> Iterator[None]:
    """Within this context the weights are moved by ``radius`` along the gradient; afterwards they are
    restored bit for bit. A gradient of zero moves nothing."""
    norm = float(torch.nn.utils.get_total_norm([*gradient.values()]))
    start = {name: trained[name].detach().clone() for name in gradient}
    with torch.no_grad():
        for name, value in gradient.items():
            trained[name].add_(value.to(trained[name].dtype), alpha=radius / norm if norm else 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in start.items():
                trained[name].copy_(value)


def sum_gradient(gradient: Gradient, trained: Mapping[str, nn.Parameter]) -> Gradient:
    """The sum over all processes, each of which has the gradient of its samples."""
    # A process without pictures in its share has no gradient for the vision tower, while frozen may.
    device = next(iter(trained.values())).device
    reached = torch.tensor([float(name in gradient) for name in trained], device=device)
    sum_over_processes([reached])
    total = {
        name: gradient[name] if name in gradient else torch.zeros_like(parameter)
        for (name, parameter), count in zip(trained.items(), reached.tolist(), strict=True)
        if count
    }
    sum_over_processes(total.values())
    return total


def mask_gradient(gradient: Gradient, mask: Mapping[str, Tensor]) -> Gradient:
    """The gradients of the parameters in the mask, set to 0 outside it, in place."""
    return {name: value.mul_(mask[name]) for name, value in gradient.items() if name in mask}


def clip_gradient(gradient: Gradient, max_norm: float | None) -> float:
    """Scale gradients down to a norm, in place; None: never. Returns the norm before."""
    norm = torch.nn.utils.get_total_norm([*gradient.values()])
    if max_norm is not None and norm > max_norm:
        torch._foreach_mul_([*gradient.values()], max_norm / float(norm))
    return norm.item()


def add_gradient(total: Gradient, gradient: Gradient) -> None:
    """Add gradients in place and empty the second, so that only one stays in memory."""
    for name in [*gradient]:
        value = gradient.pop(name)
        total[name] = total[name].add_(value) if name in total else value


@torch.no_grad()
def restore_outside(
    trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> None:
    """Restore the initial values of weights outside the mask, in place."""
    for name, parameter in trained.items():
        parameter.copy_(torch.where(mask[name], parameter, start[name]) if name in mask else start[name])


def mask_for(trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], device: torch.device) -> Masks:
    """The masks of the parameters that train, on the model's device.

    Raises:
        ValueError: if the mask reaches no trainable parameter, or has another shape than one.
    """
    packed = mask if isinstance(mask, Masks) else Masks(mask)
    masks = packed.subset(name for name in trained if name in mask).to(device)
    if not masks.any():
        raise ValueError(
            f"mask selects no weight that trains: it has {_names(mask)}, the model trains {_names(trained)}; "
            "make it from the parameters that train"
        )
    for name, shape in masks.shapes.items():
        if shape != trained[name].shape:
            raise ValueError(
                f"mask of {name} has shape {tuple(shape)}: expected the parameter's, "
                f"{tuple(trained[name].shape)}; compute it on this model"
            )
    return masks


def _names(mapping: Mapping[str, object]) -> str:
    first = ", ".join([*mapping][:2])
    return f"{len(mapping)} parameters ({first}{', ...' if len(mapping) > 2 else ''})"
