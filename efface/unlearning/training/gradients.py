"""Gradients of one term, out of the parameters: added up over processes, masked and clipped."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from efface.masks import Masks
from efface.unlearning.training.precision import Precision
from efface.unlearning.training.processes import Processes
from efface.unlearning.training.sharding import total_norm


class Filter(Protocol):
    """Lets pass what a term may change."""

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of what is left of gradients that were applied."""

    def join(self, gradients: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
        """A step comes next; others that were added to the gradients are taken out of their dict."""

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of the gradients; theirs may be altered."""


def take_gradients(
    trained: Mapping[str, nn.Parameter],
    *,
    mask: Filter | None,
    max_norm: float | None,
    clip_first: bool,
    precision: Precision,
    processes: Processes | None,
) -> tuple[dict[str, Tensor], float]:
    """Move the gradients out of the parameters, summed over processes, masked and clipped.

    Args:
        trained: the parameters that train.
        mask: lets pass what may change; None passes all.
        max_norm: the gradients are scaled down to this norm; None leaves them.
        clip_first: clip the whole gradient before it is masked, instead of what the mask leaves.
        precision: undoes the scale of the loss.
        processes: those that train together; each holds the gradient of its share. None: the gradients are
            sharded, and summed already.

    Returns:
        Gradients by parameter name, without those nothing reached, and the norm that was compared.
    """
    found = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None
    if processes is not None and processes.count > 1:
        found = _summed(trained, found, processes)
    precision.unscale(list(found.values()))
    if mask is not None and not clip_first:
        found = mask.apply(found)
    norm = total_norm(list(found.values())) if mask is None or clip_first else mask.norm(found)
    if max_norm is not None and norm > max_norm:
        torch._foreach_mul_(list(found.values()), max_norm / float(norm))
    if mask is not None and clip_first:
        found = mask.apply(found)
    return found, norm.item()


def place_gradients(
    updated: Mapping[str, nn.Parameter], terms: Mapping[str, dict[str, Tensor]], mask: Filter | None
) -> None:
    """Put the sum of the terms' gradients into what is updated, for a step.

    Args:
        updated: gets the gradients; None where no term has one.
        terms: gradients of each term, which are emptied: one of them is in memory afterwards.
        mask: what the gradients of ``forget`` were taken with.
    """
    if mask is not None and "forget" in terms:
        mask.join(terms["forget"], terms.get("retain", {}))
    for name, parameter in updated.items():
        parts = [term.pop(name) for term in terms.values() if name in term]
        parameter.grad = functools.reduce(Tensor.add_, parts) if parts else None


def mask_for(trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], device: torch.device) -> Masks:
    """The mask entries of the parameters that train, on the model's device.

    Raises:
        ValueError: if the mask reaches no trainable parameter, or has another shape than one.
    """
    masks = mask if isinstance(mask, Masks) else Masks(mask)
    chosen = masks.subset(name for name in trained if name in masks).to(device)
    if not chosen.any():
        raise ValueError(
            f"the saliency mask selects no weight that trains: it names {len(mask)} parameters "
            f"({_some(mask)}), the model "
            f"trains {len(trained)} ({_some(trained)}); compute the mask on the parameters that train"
        )
    for name, shape in chosen.shapes.items():
        if shape != trained[name].shape:
            raise ValueError(
                f"the saliency mask of {name} has shape {tuple(shape)}, the parameter "
                f"{tuple(trained[name].shape)}; "
                "compute the mask on this model"
            )
    return chosen


def _summed(
    trained: Mapping[str, nn.Parameter], found: Mapping[str, Tensor], processes: Processes
) -> dict[str, Tensor]:
    # A process without pictures in its batch has no gradient for the vision tower; the others may have one.
    device = next(iter(trained.values())).device
    reached = processes.sum(torch.tensor([float(name in found) for name in trained], device=device)).tolist()
    total = {
        name: found[name] if name in found else torch.zeros_like(p)
        for (name, p), count in zip(trained.items(), reached, strict=True)
        if count
    }
    processes.add_up(list(total.values()))
    return total


def _some(names: Mapping[str, object]) -> str:
    shown: Sequence[str] = list(names)[:2]
    return ", ".join(shown) + (", ..." if len(names) > 2 else "")
