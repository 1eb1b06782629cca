"""Control masks: as many weights per tensor as a saliency mask selects, chosen in another way.

They show what a saliency mask achieves by its size and its distribution over tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from efface.masks import Masks


def random_mask(mask: Mapping[str, Tensor], *, seed: int) -> Masks:
    """As many True per tensor as in ``mask``, drawn at random without replacement.

    Args:
        mask: boolean tensors by parameter name.
        seed: the same seed gives the same mask.
    """
    generator = torch.Generator().manual_seed(seed)
    control = Masks()
    for name, entry in mask.items():
        order = torch.randperm(entry.numel(), generator=generator)
        control |= Masks({name: _true_at(order[: int(entry.sum())], entry)})
    return control


def magnitude_mask(mask: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> Masks:
    """As many True per tensor as in ``mask``, where the forget gradient is largest in absolute value.

    Args:
        mask: boolean tensors by parameter name.
        gradient: mean gradient over the forget set (``mean_gradient``), with the names and shapes of
            ``mask``; a tensor that is True everywhere needs none. Equal values are ranked by position.

    Raises:
        ValueError: if a gradient is missing or has another shape.

    Reference:
        SalUn, arXiv:2310.12508, thresholds the absolute value of the gradient over the forget set.
    """
    control = Masks()
    for name, entry in mask.items():
        if not entry.all():
            shape = tuple(gradient[name].shape) if name in gradient else "missing"
            if shape != tuple(entry.shape):
                raise ValueError(
                    f"the gradient of {name} is {shape}, expected shape {tuple(entry.shape)}; measure it on "
                    "the parameters the mask names"
                )
            order = gradient[name].reshape(-1).abs().argsort(descending=True, stable=True)
            entry = _true_at(order[: int(entry.sum())], entry)
        control |= Masks({name: entry})
    return control


def _true_at(positions: Tensor, like: Tensor) -> Tensor:
    flat = torch.zeros(like.numel(), dtype=torch.bool)
    flat[positions.cpu()] = True
    return flat.view(like.shape)
