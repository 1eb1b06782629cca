"""Gradients of one term, out of the parameters: added up over processes, masked and clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from efface.unlearning.precision import Precision
from efface.unlearning.processes import Processes
from efface.unlearning.sharding import total_norm


def take_gradients(
    trained: Mapping[str, nn.Parameter],
    *,
    mask: Mapping[str, Tensor] | None,
    max_norm: float | None,
    clip_first: bool,
    precision: Precision,
    processes: Processes | None,
) -> tuple[dict[str, Tensor], float]:
    """Move the gradients out of the parameters, summed over processes, masked and clipped.

    Args:
        trained: the parameters that train.
        mask: True where a gradient may pass; a parameter without an entry gets none. None passes all.
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
        found = _masked(found, mask)
    norm = total_norm(list(found.values()))
    if max_norm is not None and norm > max_norm:
        torch._foreach_mul_(list(found.values()), max_norm / float(norm))
    if mask is not None and clip_first:
        found = _masked(found, mask)
    return found, norm.item()


def mask_for(
    trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """The mask entries of the parameters that train, on the model's device.

    Raises:
        ValueError: if the mask reaches no trainable parameter, or has another shape than one.
    """
    chosen = {name: mask[name].to(device) for name in trained if name in mask}
    if not any(bool(entry.any()) for entry in chosen.values()):
        raise ValueError(
            f"the saliency mask selects no weight that trains: it names {len(mask)} parameters "
            f"({_some(mask)}), the model "
            f"trains {len(trained)} ({_some(trained)}); compute the mask on the parameters that train"
        )
    for name, entry in chosen.items():
        if entry.shape != trained[name].shape:
            raise ValueError(
                f"the saliency mask of {name} has shape {tuple(entry.shape)}, the parameter "
                f"{tuple(trained[name].shape)}; "
                "compute the mask on this model"
            )
    return chosen


def _masked(gradients: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient * mask[name] for name, gradient in gradients.items() if name in mask}


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
