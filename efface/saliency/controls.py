"""Control masks: as many weights per tensor as a saliency mask selects, chosen in another way.

What such a mask achieves, a saliency mask achieves by its size and place alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_mask(mask: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """As many True per tensor as in ``mask``, drawn at random without replacement.

    Args:
        mask: boolean tensors by parameter name.
        seed: the same seed gives the same mask.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _with_true(entry, torch.randperm(entry.numel(), generator=generator)[: int(entry.sum())])
        for name, entry in mask.items()
    }


def magnitude_mask(mask: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As many True per tensor as in ``mask``, where the forget gradient is largest in absolute value.

    Args:
        mask: boolean tensors by parameter name.
        gradient: mean gradient over the forget set (``mean_gradient``), with the names and shapes of
            ``mask``; a tensor that is True everywhere needs none. Equal values are broken by position.

    Raises:
        ValueError: if a gradient is missing or has another shape.

    Reference:
        SalUn, arXiv:2310.12508, thresholds the absolute value of the gradient over the forget set.
    """
    chosen = {}
    for name, entry in mask.items():
        if bool(entry.all()):
            chosen[name] = entry.clone()
            continue
        if name not in gradient or gradient[name].shape != entry.shape:
            found = tuple(gradient[name].shape) if name in gradient else "missing"
            raise ValueError(
                f"the gradient of {name} is {found}, expected shape {tuple(entry.shape)}; measure it on the "
                "parameters the mask names"
            )
        order = gradient[name].reshape(-1).abs().argsort(descending=True, stable=True)
        chosen[name] = _with_true(entry, order[: int(entry.sum())])
    return chosen


def _with_true(like: Tensor, positions: Tensor) -> Tensor:
    flat = torch.zeros(like.numel(), dtype=torch.bool)
    flat[positions.cpu()] = True
    return flat.view(like.shape)
