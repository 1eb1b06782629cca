"""Ranking neurons, and selecting a share of them to prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from efface.models.anatomy import MLP
from efface.neurons.official_code import relative_excess
from efface.neurons.scores import FUNCTIONS, relative_importance
from efface.neurons.statistics import Units

Scope = Literal["tower", "global", "layer"]
Third = Literal["early", "middle", "late"]
Layers = Third | Mapping[str, Sequence[int]] | None
"""A third of each tower's layers; or the first and last layer by tower, counted from 0; or all layers."""

_THIRDS = ("early", "middle", "late")


def ranking(
    tables: Mapping[str, Mapping[str, Tensor]], by: str, *, variant: str = "paper"
) -> Mapping[str, Tensor]:
    """Scores of the units of an importance file; the highest are pruned first.

    Args:
        tables: the file's tables, from ``load_importance``.
        by: ``importance`` (the method's own score); ``activation`` (largest mean activation on the forget
            set); ``no_retain`` (importance on the forget set, ignoring the retain set); or one of ``abs``,
            ``freq``, ``var`` and ``rms`` (the score from that function alone).
        variant: the file's variant; it decides how a single function compares forget with retain.

    Raises:
        ValueError: if there is no such ranking, or the file has it only for some units.
    """
    if by == "importance" and variant == "paper":
        return relative_importance(tables["importance.forget"], tables["importance.retain"])
    names = {"importance": "score", "activation": "activation", "no_retain": "importance.forget"}
    if by in names:
        return tables[names[by]]
    if by not in FUNCTIONS:
        raise ValueError(f"no ranking {by!r}; expected one of: {', '.join([*names, *FUNCTIONS])}")
    forget, retain = tables.get(f"terms.forget.{by}", {}), tables.get(f"terms.retain.{by}", {})
    missing = tables["importance.forget"].keys() - forget.keys()
    if missing:
        raise ValueError(
            f"{min(missing)} has no {by} to rank by, as its statistics are over pictures alone; measure "
            "it with a blank image for text (vision_text_reference: blank_image)"
        )
    return (relative_importance if variant == "paper" else relative_excess)(forget, retain)


def select_neurons(
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor],
    *,
    fraction: float,
    scope: Scope = "tower",
    mlps: Sequence[MLP | Units] = (),
) -> dict[str, Tensor]:
    """The neurons with the highest relative importance S; see ``select_highest``.

    Args:
        forget: importance on the forget set by MLP name.
        retain: importance on the retain set by MLP name.
        fraction: share of neurons to select, in (0, 1): of each tower, of the whole model, or of each layer.
        scope: what the share is taken of; ``tower`` needs ``mlps``.
        mlps: the MLP blocks, to know each one's tower.

    Raises:
        ValueError: if the fraction is out of range, or a tower is unknown.
    """
    return select_highest(relative_importance(forget, retain), fraction=fraction, scope=scope, units=mlps)


def select_highest(
    scores: Mapping[str, Tensor],
    *,
    fraction: float,
    scope: Scope = "tower",
    units: Sequence[MLP | Units] = (),
    layers: Layers = None,
) -> dict[str, Tensor]:
    """The units with the highest scores.

    Args:
        scores: module name -> one score per unit.
        fraction: share of units to select, in (0, 1): of each tower, of the whole model, or of each layer.
        scope: what the share is taken of; ``tower`` needs ``units``.
        units: tower and layer of each module.
        layers: select only from these layers, but as many units as the share of all layers; a tower missing
            from a mapping is not pruned. None: all layers.

    Returns:
        Module name -> sorted indices (int64) of the selected units; modules without any have no entry. Equal
        scores are ranked by position, so the same scores always give the same units.

    Raises:
        ValueError: if the fraction is out of range or selects nothing, a tower is unknown, or the layers do
            not exist or hold too few units.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    unit_of = {unit.name: unit for unit in units}
    unknown = [name for name in scores if name not in unit_of]
    if unknown and (scope == "tower" or layers is not None):
        raise ValueError(f"the tower of {unknown[0]} is unknown; pass the model's MLP blocks as `mlps`")
    if layers is not None and scope == "layer":
        raise ValueError(
            f"scope is {scope!r} with layers {layers}: expected tower or global with chosen layers"
        )
    allowed_layers = _layers_by_tower(units, layers)
    pools: dict[str, list[str]] = {}
    for name in scores:
        tower = unit_of[name].tower if name in unit_of else ""
        if layers is None or tower in allowed_layers:
            pools.setdefault({"tower": tower, "global": "model", "layer": name}[scope], []).append(name)
    selection: dict[str, Tensor] = {}
    for pool, names in pools.items():
        count = round(fraction * sum(len(scores[name]) for name in names))
        if layers is not None:
            names = [n for n in names if unit_of[n].layer in allowed_layers[unit_of[n].tower]]
        room = sum(len(scores[name]) for name in names)
        if count > room:
            raise ValueError(
                f"fraction {fraction} of the {pool} is {count} units, but the layers {layers} have {room}; "
                "take a smaller fraction or more layers"
            )
        if count:
            selection |= _top(scores, names, count)
    if not selection:
        raise ValueError(f"fraction {fraction} selects no unit; take a larger one")
    return selection


def random_neurons(
    selection: Mapping[str, Tensor], widths: Mapping[str, int], *, seed: int
) -> dict[str, Tensor]:
    """As many neurons as ``selection`` has in each MLP, drawn at random: a control for the number of neurons
    alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(widths[name], generator=generator)[: len(units)].sort().values
        for name, units in selection.items()
    }


def _top(scores: Mapping[str, Tensor], names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Indices of the ``count`` highest scores over several modules, by module."""
    flat = torch.cat([scores[name] for name in names])
    top = flat.argsort(descending=True, stable=True)[:count]
    selection, start = {}, 0
    for name in names:
        width = len(scores[name])
        indices = top[(top >= start) & (top < start + width)] - start
        if len(indices):
            selection[name] = indices.sort().values
        start += width
    return selection


def _layers_by_tower(units: Sequence[MLP | Units], layers: Layers) -> dict[str, set[int]]:
    """Layers that may be pruned, by tower; empty if all may."""
    if layers is None:
        return {}
    towers = dict.fromkeys(unit.tower for unit in units)
    indices = {tower: sorted({unit.layer for unit in units if unit.tower == tower}) for tower in towers}
    if isinstance(layers, str):
        third = _THIRDS.index(layers)
        allowed = {
            tower: {i for k, i in enumerate(present) if k * 3 // len(present) == third}
            for tower, present in indices.items()
        }
    else:
        allowed = {
            tower: {i for i in indices.get(tower, ()) if first <= i <= last}
            for tower, (first, last) in layers.items()
        }
    for tower, selected in allowed.items():
        if not selected:
            present = indices.get(tower)
            extent = f"it has {present[0]} to {present[-1]}" if present else "it has none"
            requested = layers if isinstance(layers, str) else "{} to {}".format(*layers[tower])
            raise ValueError(f"no layer of the {tower} tower is among the layers {requested}; {extent}")
    return allowed
