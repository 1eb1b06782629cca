"""MANU as its released code computes it, whose units, statistics and score differ from the paper's.

A unit is an output row of a linear layer of an MLP (fc1, fc2; gate, up, down), in the last three layers of
each tower. The vision tower is measured on pictures, the decoder on text; the two are never compared.

    I_k in { mean |a|, share of |a| > tau, standard deviation, root mean square }     over tokens and samples
    S   = sum_k w_k ( I_k(forget) / (I_k(retain) + 1e-5) - 1 )                        w = 2, 0, 2, 2

In the released code three layers share one hook and so one statistic, padding counts, and the deviation is
taken position by position within a batch, so it depends on the batch size. Here every layer has its own
statistics, over all unpadded tokens.

Reference:
    Liu et al., "MANU", arXiv:2502.15910, released code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.encoding.batches import Inputs, to_device
from efface.models.anatomy import MLP
from efface.neurons.scores import FUNCTIONS, Tables
from efface.neurons.statistics import Units, add_over_processes, measuring_mode

EPS = 1e-5
LAYERS = 3
WEIGHTS = {"abs": 2.0, "freq": 0.0, "var": 2.0, "rms": 2.0}


@dataclass(frozen=True)
class TokenStatistics:
    """Sums over tokens for the N output rows of one linear layer, float64, shape (N,).

    Attributes:
        count: number of tokens, the same for all rows.
        sum: sum of a.
        sum_abs: sum of abs(a).
        sum_square: sum of a squared.
        active: number of tokens with abs(a) above the activity threshold.
    """

    count: Tensor
    sum: Tensor
    sum_abs: Tensor
    sum_square: Tensor
    active: Tensor

    def terms(self) -> dict[str, Tensor]:
        """``abs`` (mean of abs(a)), ``freq`` (share active, in [0, 1]), ``var`` (population standard
        deviation of a) and ``rms``."""
        mean, square = self.sum / self.count, self.sum_square / self.count
        return {
            "abs": self.sum_abs / self.count,
            "freq": self.active / self.count,
            "var": (square - mean.square()).clamp_min(0).sqrt(),
            "rms": square.sqrt(),
        }


def output_units(model: nn.Module, mlps: Iterable[MLP]) -> list[Units]:
    """The linear layers of the MLP blocks in the last three layers of each tower, one entry each."""
    mlps = list(mlps)
    # Experts whose weights are stacked have no linear layers of their own.
    mlps = [mlp for mlp in mlps if mlp.expert is None]
    last = {
        tower: sorted({m.layer for m in mlps if m.tower == tower})[-LAYERS:]
        for tower in ("vision", "language")
    }
    return [
        Units(name, mlp.tower, mlp.layer, int(model.get_parameter(f"{name}.weight").shape[0]))
        for mlp in mlps
        if mlp.layer in last[mlp.tower]
        for name in (*mlp.up, mlp.down)
    ]


@torch.no_grad()
def output_statistics(
    model: nn.Module, batches: Iterable[Inputs], *, units: Sequence[Units], active_above: float
) -> dict[str, TokenStatistics]:
    """Statistics of the outputs of the given layers over all unpadded tokens of all batches.

    Under ``torch.distributed`` they include the batches of all processes.

    Args:
        model: a multimodal LLM; measured in evaluation mode and unchanged afterwards.
        batches: padded model inputs with ``attention_mask``.
        units: the layers, from ``output_units``.
        active_above: an output is active at a token if abs(a) exceeds this, > 0.

    Returns:
        Layer name -> statistics. A layer that no input reached has no entry.

    Raises:
        ValueError: if there is no batch.
    """
    device = next(model.parameters()).device
    sums = {unit.name: torch.zeros(5, unit.width, dtype=torch.float64, device=device) for unit in units}
    reached = dict.fromkeys(sums, 0)
    samples = 0
    unpadded = torch.zeros(0, dtype=torch.long, device=device)

    def record(unit: Units, module: nn.Module, args: tuple[Tensor, ...], values: Tensor) -> None:
        a = values.flatten(0, -2)
        if unit.tower == "language":
            a = a.index_select(0, unpadded)
        a = a.double()
        size, total = a.abs(), sums[unit.name]
        total[0] += len(a)
        total[1] += a.sum(0)
        total[2] += size.sum(0)
        total[3] += a.square().sum(0)
        total[4] += (size > active_above).sum(0)
        reached[unit.name] += len(a)

    with measuring_mode(model) as handles:
        handles += [
            model.get_submodule(unit.name).register_forward_hook(functools.partial(record, unit))
            for unit in units
        ]
        for batch in batches:
            # Positions of unpadded tokens, computed on the batch's device, so that no batch waits for it.
            unpadded = batch["attention_mask"].flatten().nonzero().flatten().to(device, non_blocking=True)
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            model(**to_device(inputs, device))
            samples += len(batch["input_ids"])
    add_over_processes(samples, reached, list(sums.values()))
    return {name: TokenStatistics(*parts.cpu()) for name, parts in sums.items() if reached[name]}


def official_tables(forget: Mapping[str, TokenStatistics], retain: Mapping[str, TokenStatistics]) -> Tables:
    """The tables of an importance file: terms, their weighted sums on both sets, and the score S.

    Args:
        forget: statistics on the forget set by layer name.
        retain: statistics on the retain set of the same layers.

    Raises:
        ValueError: if the two name different layers.
    """
    odd = sorted(forget.keys() ^ retain.keys())
    if odd:
        raise ValueError(f"only one of the two sets reached {odd[0]}; both must cover the same layers")
    tables: Tables = {}
    for kind, statistics in (("forget", forget), ("retain", retain)):
        terms = {name: values.terms() for name, values in statistics.items()}
        tables |= {f"terms.{kind}.{f}": {name: t[f] for name, t in terms.items()} for f in FUNCTIONS}
        tables[f"importance.{kind}"] = {
            name: torch.stack([WEIGHTS[f] * t[f] for f in FUNCTIONS]).sum(0) for name, t in terms.items()
        }
    excess = {f: relative_excess(tables[f"terms.forget.{f}"], tables[f"terms.retain.{f}"]) for f in FUNCTIONS}
    tables["score"] = {
        name: torch.stack([WEIGHTS[f] * excess[f][name] for f in FUNCTIONS]).sum(0) for name in forget
    }
    tables["activation"] = tables["terms.forget.abs"]
    return tables


def relative_excess(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much larger a statistic is on the forget set: the ratio minus one."""
    return {name: value / (retain[name] + EPS) - 1 for name, value in forget.items()}
