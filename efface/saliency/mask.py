"""From two Fisher diagonals to a saliency mask, and the agreement of two masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from efface.masks import Masks
from efface.saliency.fisher import SAMPLE_SIZE

EPS = 1e-15


def saliency_mask(
    forget: Mapping[str, Tensor],
    preserve: Mapping[str, Tensor],
    *,
    threshold: float = 1.0,
    density: float | None = None,
    eps: float = EPS,
    smooth_numerator: bool = False,
) -> Masks:
    """Select the weights that matter more for what to forget than for what to retain.

        mask = 1[ forget / (preserve + eps) >= threshold ]

    A weight with no gradient in either set has ratio 0 and is not salient.

    Args:
        forget: Fisher diagonal of the forget set, float32, values >= 0.
        preserve: Fisher diagonal of what to retain; same names and shapes.
        threshold: ratio from which a weight is salient, > 0.
        density: share of weights to select instead, those with the highest ratios, in (0, 1); see
            ``ratio_threshold``.
        eps: keeps the ratio finite.
        smooth_numerator: add ``eps`` to the forget Fisher as well; a weight with no gradient in either set
            then has ratio 1, which is salient at thresholds up to 1.

    Returns:
        Boolean masks with the names and shapes of ``forget``; True = may change.

    Raises:
        ValueError: if names, shapes or dtypes differ, a value is not finite, or the threshold or density is
            out of range.

    Reference:
        arXiv:2502.11051, beta = 1. Its code gives weights without any gradient the ratio 1 and calls them
        salient (``smooth_numerator``).
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be above 0 and finite, got {threshold}")
    if density is not None:
        threshold = ratio_threshold(
            forget, preserve, density=density, eps=eps, smooth_numerator=smooth_numerator
        )
    masks = Masks()
    for name, ratio in _ratios(forget, preserve, eps, smooth_numerator):
        masks |= Masks({name: ratio >= threshold})
    return masks


def ratio_threshold(
    forget: Mapping[str, Tensor],
    preserve: Mapping[str, Tensor],
    *,
    density: float,
    eps: float = EPS,
    smooth_numerator: bool = False,
) -> float:
    """The threshold at which ``saliency_mask`` selects a given share of all weights.

    For more than 4 million weights it is estimated from evenly spaced ones, so large models meet the share to
    about 0.1 points. Weights without any forget gradient are never selected.

    Args:
        forget: as for ``saliency_mask``, as are the arguments not listed here.
        density: share of weights to select, in (0, 1).

    Raises:
        ValueError: as for ``saliency_mask``.
    """
    if not 0 < density < 1:
        raise ValueError(f"density must be above 0 and below 1, got {density}")
    step = max(1, sum(value.numel() for value in forget.values()) // SAMPLE_SIZE) | 1
    ratios = torch.cat(
        [ratio.view(-1)[::step].cpu() for _, ratio in _ratios(forget, preserve, eps, smooth_numerator)]
    )
    count = min(len(ratios), max(1, round(density * len(ratios))))
    return max(float(ratios.kthvalue(len(ratios) - count + 1).values), torch.finfo(torch.float32).tiny)


def kappa(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float | None:
    """Cohen's kappa of two masks over all weights: 1 for equal masks, 0 for agreement by chance; None if both
    are all True or all False, and so equal by chance alone."""
    size = sum(mask.numel() for mask in a.values())
    agreement = sum(int((a[name] == b[name]).sum()) for name in a) / size
    p, q = (sum(int(mask.sum()) for mask in masks.values()) / size for masks in (a, b))
    chance = p * q + (1 - p) * (1 - q)
    return None if chance == 1 else (agreement - chance) / (1 - chance)


def _ratios(
    forget: Mapping[str, Tensor], preserve: Mapping[str, Tensor], eps: float, smooth_numerator: bool
) -> Iterator[tuple[str, Tensor]]:
    if forget.keys() != preserve.keys():
        odd = sorted(forget.keys() ^ preserve.keys())
        raise ValueError(
            f"the two Fisher diagonals name different parameters, first {odd[0]!r}; measure both on one model"
        )
    for name, top in forget.items():
        for label, value in (("forget", top), ("preserve", preserve[name])):
            _check(name, label, value, top.shape)
        yield name, (top + eps if smooth_numerator else top) / (preserve[name] + eps)


def _check(name: str, label: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(f"{label} Fisher of {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    if value.dtype != torch.float32:
        raise ValueError(
            f"{label} Fisher of {name} is {value.dtype}, expected torch.float32: half precision underflows "
            "when squared"
        )
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(
            f"{label} Fisher of {name} has {bad} of {value.numel()} values that are not finite; check the "
            "model for NaN weights, or load it in bfloat16 or float32"
        )
