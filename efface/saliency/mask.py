"""From two Fisher diagonals to a saliency mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.masks import PackedMask
from efface.saliency.names import weight_of

if TYPE_CHECKING:
    from efface.models import Anatomy


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
) -> PackedMask:
    """As ``saliency_mask``, at one bit per weight; each pair of tensors is dropped once it is compared, so
    that both dictionaries are empty afterwards."""
    if forget.keys() != preserve.keys():
        saliency_mask(forget, preserve)  # says which
    packed = PackedMask({}, {})
    for name in list(forget):
        pair = {name: forget.pop(name)}, {name: preserve.pop(name)}
        packed |= PackedMask.of(saliency_mask(*pair, threshold=threshold, smooth_numerator=smooth_numerator))
    return packed


def contrast_mask(
    contrast: dict[str, Tensor],
    *,
    threshold: float = 1.0,
    eps: float = 1e-15,
    smooth_numerator: bool = False,
) -> PackedMask:
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
    packed = PackedMask({}, {})
    for name in list(contrast):
        value = contrast.pop(name)
        _check(name, "difference of the", value, value.shape)
        bound = threshold * eps - (eps if smooth_numerator else 0.0)
        packed |= PackedMask.of({name: value >= bound})
    return packed


def mask_density(mask: Mapping[str, Tensor], anatomy: Anatomy) -> dict[str, object]:
    """Share of True in a mask: in all, per group, per layer (``language.3``) and per kind of module
    (``q_proj``).

    Args:
        mask: boolean tensors by parameter name; LoRA's factors count for the weight they change.
        anatomy: parts of the model without LoRA.
    """
    from efface.models.anatomy import layer_index

    owner = {name: group for group, names in anatomy.groups.items() for name in names}
    sums: dict[str, dict[str, list[int]]] = {"groups": {}, "layers": {}, "kinds": {}}
    kept = size = 0
    for parameter, entry in mask.items():
        name = weight_of(parameter)
        true, count = int(entry.sum()), entry.numel()
        kept, size = kept + true, size + count
        layer = layer_index(name)
        keys = {"groups": owner[name], "kinds": name.split(".")[-2]}
        if layer is not None:
            keys["layers"] = f"{owner[name]}.{layer}"
        for level, key in keys.items():
            pair = sums[level].setdefault(key, [0, 0])
            pair[0] += true
            pair[1] += count
    shares = {level: {key: a / b for key, (a, b) in entries.items()} for level, entries in sums.items()}
    return {"total": kept / size if size else 0.0, **shares}


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
