"""Zeroing units, which keeps all shapes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.models.anatomy import MLP, anatomy
from efface.models.mlps import Index, neuron_entries
from efface.neurons.selection import Layers, Scope, select_highest
from efface.neurons.statistics import neuron_units


@dataclass(frozen=True)
class PruningSummary:
    """What was pruned.

    Attributes:
        pruned: tower -> layer index -> number of units zeroed.
        widths: tower -> layer index -> total number of units.
    """

    pruned: dict[str, dict[int, int]]
    widths: dict[str, dict[int, int]]

    @property
    def total(self) -> int:
        """Total number of units zeroed."""
        return sum(count for layers in self.pruned.values() for count in layers.values())


def prune(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    *,
    fraction: float = 0.03,
    scope: Scope = "tower",
    layers: Layers = None,
) -> PruningSummary:
    """Zero the neurons with the highest scores, in place.

    Args:
        model: a multimodal LLM.
        scores: MLP name -> one score per neuron, such as ``relative_importance``'s.
        fraction: share of neurons to prune, in (0, 1).
        scope: what the share is taken of: each tower, the whole model (``global``) or each layer.
        layers: see ``select_highest``.

    Raises:
        ValueError: if the selection is impossible, see ``select_highest``.
    """
    units = neuron_units(anatomy(model).require_mlps())
    return zero_neurons(
        model, select_highest(scores, fraction=fraction, scope=scope, units=units, layers=layers)
    )


Region = tuple[Tensor, Index]
"""A parameter and the index of some of its entries."""


def zero_neurons(model: nn.Module, selection: Mapping[str, Tensor]) -> PruningSummary:
    """Set each selected neuron's outgoing column, incoming rows and incoming bias entries to zero, in place.

    The output equals that of the model with these hidden activations forced to 0.

    Args:
        model: a multimodal LLM.
        selection: MLP name -> neuron indices.

    Raises:
        ValueError: if an MLP or an index does not exist.
    """
    blocks = anatomy(model).mlps
    set_to_zero(neuron_regions(model, selection))
    return _summary((mlp.tower, mlp.layer, mlp.width, selection.get(mlp.name, ())) for mlp in blocks)


def zero_outputs(model: nn.Module, selection: Mapping[str, Tensor]) -> PruningSummary:
    """Set the selected output rows of the MLPs' linear layers, and their bias entries, to zero, in place.

    Args:
        model: a multimodal LLM.
        selection: name of a linear layer of an MLP -> row indices.

    Raises:
        ValueError: if a layer or an index does not exist.
    """
    blocks = [mlp for mlp in anatomy(model).mlps if mlp.expert is None]
    set_to_zero(output_regions(model, selection))
    return _summary(
        (mlp.tower, mlp.layer, _linear(model, name).out_features, selection.get(name, ()))
        for mlp in blocks
        for name in (*mlp.up, mlp.down)
    )


def neuron_regions(model: nn.Module, selection: Mapping[str, Tensor]) -> list[Region]:
    """The regions that ``zero_neurons`` zeroes; same arguments and errors."""
    blocks = {mlp.name: mlp for mlp in anatomy(model).mlps}
    regions: list[Region] = []
    for name, units in selection.items():
        mlp = _block_of(blocks, name)
        _check(name, units, mlp.width)
        regions += neuron_entries(model, mlp, units)
    return regions


def output_regions(model: nn.Module, selection: Mapping[str, Tensor]) -> list[Region]:
    """The regions that ``zero_outputs`` zeroes; same arguments and errors."""
    blocks = [mlp for mlp in anatomy(model).mlps if mlp.expert is None]
    layers = {name: mlp for mlp in blocks for name in (*mlp.up, mlp.down)}
    regions: list[Region] = []
    for name, units in selection.items():
        _block_of(layers, name)
        layer = _linear(model, name)
        _check(name, units, layer.out_features)
        regions += _rows(layer, units)
    return regions


@torch.no_grad()
def set_to_zero(regions: Iterable[Region]) -> None:
    """Set the regions to zero, in place."""
    for parameter, index in regions:
        parameter[index] = 0


@contextmanager
def hold_at_zero(regions: Sequence[Region]) -> Iterator[None]:
    """Set the gradient of the regions to zero within the context, so that their zeros survive training.

    Zeros stay exact: without a gradient AdamW's moments stay zero, and weight decay only scales.
    """

    def drop(index: Index, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[index] = 0
        return gradient

    handles = [parameter.register_hook(functools.partial(drop, index)) for parameter, index in regions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: nn.Linear, units: Tensor) -> list[Region]:
    return [(parameter, (units,)) for parameter in (layer.weight, layer.bias) if parameter is not None]


def _block_of(blocks: Mapping[str, MLP], name: str) -> MLP:
    if name not in blocks:
        raise ValueError(
            f"{name!r} is not an MLP block of the model; it has {', '.join(list(blocks)[:3])}, ..."
        )
    return blocks[name]


def _check(name: str, units: Tensor, width: int) -> None:
    if len(units) and not 0 <= int(units.min()) <= int(units.max()) < width:
        raise ValueError(f"{name} has neurons 0 to {width - 1}, got {int(units.min())} to {int(units.max())}")


def _summary(parts: Iterable[tuple[str, int, int, Tensor | tuple[()]]]) -> PruningSummary:
    pruned: dict[str, dict[int, int]] = {"vision": {}, "language": {}}
    widths: dict[str, dict[int, int]] = {"vision": {}, "language": {}}
    for tower, layer, width, units in parts:
        pruned[tower][layer] = pruned[tower].get(layer, 0) + len(units)
        widths[tower][layer] = widths[tower].get(layer, 0) + width
    return PruningSummary(pruned=pruned, widths=widths)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{name} is a {type(layer).__name__}, expected a linear layer")
    return layer
