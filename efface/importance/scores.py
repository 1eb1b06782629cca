"""MANU: modality-aware neuron importance, and the choice of neurons to prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from efface.importance.statistics import ActivationStatistics
from efface.models.anatomy import MLP

EPS = 1e-8
Scope = Literal["tower", "global", "layer"]


def neuron_importance(
    multimodal: Mapping[str, ActivationStatistics], text: Mapping[str, ActivationStatistics]
) -> dict[str, Tensor]:
    """Importance of every neuron on one set: the sum of four comparisons of its two renderings.

        I = I_abs + I_freq + I_var + I_rms

    Args:
        multimodal: statistics over the samples with their pictures.
        text: statistics over the same facts in words; the same number of samples.

    Returns:
        MLP name -> float64 tensor (N,), values >= 0.

    Raises:
        ValueError: if the two name different MLPs, or count different numbers of samples.

    Reference:
        arXiv:2502.15910, section 4. As printed, the variance takes the mean of abs(z) from z; here abs(z)
        stands in both places.
    """
    if multimodal.keys() != text.keys():
        odd = sorted(multimodal.keys() ^ text.keys())
        raise ValueError(f"only one of the two renderings reached {odd[0]}; both must cover the same MLPs")
    scores = {}
    for name, m in multimodal.items():
        t = text[name]
        if m.count != t.count:
            raise ValueError(
                f"{m.count} multimodal and {t.count} text samples cannot be compared for {name}: take one "
                f"text rendering "
                "for each multimodal sample"
            )
        difference = _contrast(m.mean_abs, t.mean_abs) + _contrast(m.active, t.active)
        spread = torch.sqrt(m.variance + t.variance)
        scores[name] = difference + spread + torch.sqrt(_contrast(m.sum_square, t.sum_square))
    return scores


def relative_importance(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """S = importance on the forget set over importance on the retain set, per neuron."""
    return {name: value / (retain[name] + EPS) for name, value in forget.items()}


def select_neurons(
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor],
    *,
    fraction: float,
    scope: Scope = "tower",
    mlps: Sequence[MLP] = (),
) -> dict[str, Tensor]:
    """The neurons with the highest relative importance S.

    Args:
        forget: importance on the forget set by MLP name.
        retain: importance on the retain set by MLP name.
        fraction: share of neurons to select, in (0, 1): of each tower, of the whole model, or of each layer.
        scope: what the share is taken of; ``tower`` needs ``mlps``.
        mlps: the MLP blocks, to know each one's tower.

    Returns:
        MLP name -> sorted indices (int64) of the selected neurons; MLPs without any are left out. Equal
        scores are broken by position, so the same scores always give the same neurons.

    Raises:
        ValueError: if the fraction is out of range, or a tower is unknown.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    scores = relative_importance(forget, retain)
    towers = {mlp.name: mlp.tower for mlp in mlps}
    pools: dict[str, list[str]] = {}
    for name in scores:
        if scope == "tower" and name not in towers:
            raise ValueError(f"the tower of {name} is unknown; pass the model's MLP blocks as `mlps`")
        pools.setdefault({"tower": towers.get(name, ""), "global": "all", "layer": name}[scope], []).append(
            name
        )
    chosen: dict[str, Tensor] = {}
    for names in pools.values():
        flat = torch.cat([scores[name] for name in names])
        top = flat.argsort(descending=True, stable=True)[: round(fraction * len(flat))]
        start = 0
        for name in names:
            width = len(scores[name])
            inside = top[(top >= start) & (top < start + width)] - start
            if len(inside):
                chosen[name] = inside.sort().values
            start += width
    return chosen


def random_neurons(
    selection: Mapping[str, Tensor], widths: Mapping[str, int], *, seed: int
) -> dict[str, Tensor]:
    """As many neurons as ``selection`` has in each MLP, drawn at random: the control that says what a count
    alone does."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(widths[name], generator=generator)[: len(units)].sort().values
        for name, units in selection.items()
    }


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """Absolute difference over sum, in [0, 1]."""
    return (a - b).abs() / (a + b + EPS)
