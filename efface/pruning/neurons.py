"""Zeroing neurons: shapes stay, what the neurons contributed is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.models.anatomy import anatomy
from efface.models.blocks import neuron_entries


@dataclass(frozen=True)
class PruningSummary:
    """What was pruned.

    Attributes:
        pruned: tower -> layer index -> number of neurons zeroed.
        widths: tower -> layer index -> number of neurons there are.
    """

    pruned: dict[str, dict[int, int]]
    widths: dict[str, dict[int, int]]

    @property
    def total(self) -> int:
        """Neurons zeroed in all."""
        return sum(count for layers in self.pruned.values() for count in layers.values())


@torch.no_grad()
def zero_neurons(model: nn.Module, selection: Mapping[str, Tensor]) -> PruningSummary:
    """Set each selected neuron's outgoing column, incoming rows and incoming bias entries to zero, in place.

    The output equals that of the model with these hidden activations forced to 0.

    Args:
        model: a multimodal LLM.
        selection: MLP name -> neuron indices.

    Raises:
        ValueError: if an MLP or an index does not exist.
    """
    blocks = {mlp.name: mlp for mlp in anatomy(model).mlps}
    pruned: dict[str, dict[int, int]] = {"vision": {}, "language": {}}
    widths: dict[str, dict[int, int]] = {"vision": {}, "language": {}}
    for mlp in blocks.values():
        pruned[mlp.tower][mlp.layer] = pruned[mlp.tower].get(mlp.layer, 0) + len(selection.get(mlp.name, ()))
        widths[mlp.tower][mlp.layer] = widths[mlp.tower].get(mlp.layer, 0) + mlp.width
    for name, units in selection.items():
        if name not in blocks:
            raise ValueError(
                f"{name!r} is not an MLP block of the model; it has {', '.join(list(blocks)[:3])}, ..."
            )
        mlp = blocks[name]
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < mlp.width:
            raise ValueError(
                f"{name} has neurons 0 to {mlp.width - 1}, got {int(units.min())} to {int(units.max())}"
            )
        for parameter, index in neuron_entries(model, mlp, units):
            parameter[index] = 0
    return PruningSummary(pruned=pruned, widths=widths)
