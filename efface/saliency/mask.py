"""From two Fisher diagonals to a saliency mask."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from efface.masks import Masks


def saliency_mask(
    forget: Mapping[str, Tensor],
    preserve: Mapping[str, Tensor],
    *,
    threshold: float = 1.0,
    eps: float = 1e-15,
    smooth_numerator: bool = False,
) -> dict[str, Tensor]:
    """Weights that matter more for what is to be forgotten than for what is to be kept.

        mask = 1[ forget / (preserve + eps) >= threshold ]

    A weight with no gradient in either set has ratio 0 and is not salient.

    Args:
        forget: Fisher diagonal of the forget set, float32, values >= 0.
        preserve: Fisher diagonal of what is to be kept; same names and shapes.
        threshold: ratio from which a weight is salient, > 0.
        eps: keeps the ratio finite.
        smooth_numerator: add ``eps`` to the forget Fisher as well; a weight with no gradient in either set
            then has ratio 1, which is salient at thresholds up to 1.

    Returns:
        Boolean masks with the names and shapes of ``forget``; True = may change.

    Raises:
        ValueError: if names, shapes or dtypes differ, a value is not finite, or the threshold is not
        positive and finite.

    Reference:
        arXiv:2502.11051, beta = 1. Its code gives weights without any gradient the ratio 1 and calls them
        salient (``smooth_numerator``).
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be above 0 and finite, got {threshold}")
    if forget.keys() != preserve.keys():
        odd = sorted(forget.keys() ^ preserve.keys())
        raise ValueError(
            f"the two Fisher diagonals name different parameters, first {odd[0]!r}; measure both on one model"
        )
    mask = {}
    for name, top in forget.items():
        bottom = preserve[name]
        for kind, value in (("forget", top), ("preserve", bottom)):
            _check(name, kind, value, top.shape)
        mask[name] = (top + eps if smooth_numerator else top) / (bottom + eps) >= threshold
    return mask


def packed_saliency_mask(
    forget: dict[str, Tensor],
    preserve: dict[str, Tensor],
    *,
    threshold: float = 1.0,
    smooth_numerator: bool = False,
) -> Masks:
    """As ``saliency_mask``, at one bit per weight; each pair of tensors is dropped once it is compared, so
    that both dictionaries are empty afterwards."""
    if forget.keys() != preserve.keys():
        saliency_mask(forget, preserve)  # says which
    packed = Masks()
    for name in list(forget):
        pair = {name: forget.pop(name)}, {name: preserve.pop(name)}
        packed |= Masks(saliency_mask(*pair, threshold=threshold, smooth_numerator=smooth_numerator))
    return packed


def contrast_mask(
    contrast: dict[str, Tensor],
    *,
    threshold: float = 1.0,
    eps: float = 1e-15,
    smooth_numerator: bool = False,
) -> Masks:
    """The mask of two Fisher diagonals of which only forget - threshold x preserve was kept.

        forget / (preserve + eps) >= threshold   <=>   forget - threshold preserve >= threshold eps

    Args:
        contrast: from ``fisher_contrast`` with the same threshold; dropped tensor by tensor, empty
            afterwards.
        threshold: as for ``saliency_mask``, like what follows.
        eps: keeps the ratio finite.
        smooth_numerator: whether ``eps`` is in the numerator as well.

    Raises:
        ValueError: if a value is not finite.
    """
    packed = Masks()
    for name in list(contrast):
        value = contrast.pop(name)
        _check(name, "difference of the", value, value.shape)
        bound = threshold * eps - (eps if smooth_numerator else 0.0)
        packed |= Masks({name: value >= bound})
    return packed


def _check(name: str, kind: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(f"{kind} Fisher of {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    if value.dtype != torch.float32:
        raise ValueError(
            f"{kind} Fisher of {name} is {value.dtype}, expected torch.float32: half precision underflows "
            f"when squared"
        )
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(
            f"{kind} Fisher of {name} has {bad} of {value.numel()} values that are not finite; check the "
            f"model for NaN weights, "
            "or load it in bfloat16 or float32"
        )
