"""What a decoder's MLP neurons do on the retain set: an artifact that can replace the retain set.

For each decoder MLP, with a the values of its neurons (the input of the down projection):

    mean_abs_j = mean over answer-predicting positions of |a_j|
    span       = rows with the same Gram matrix as, per sample, the mean of a over the answer-predicting
                 positions and the mean of a over all other unpadded positions

A position predicts an answer token if the next token is one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import IGNORED, Encoder, Inputs, to_device
from efface.encoding.forward import forward, separable
from efface.errors import ModelError
from efface.masks import METADATA_KEY, check_digest, read_metadata
from efface.models.anatomy import MLP, anatomy
from efface.models.mlps import down_weight, watch_neurons
from efface.neurons.statistics import measuring_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

KIND = "retain_statistic"


@dataclass(frozen=True)
class RetainStatistic:
    """The retain statistic of each decoder MLP.

    Attributes:
        mean_abs: MLP name -> mean of abs(a) over answer-predicting positions, (N,) float32.
        span: MLP name -> rows that span what the samples' pooled values span, (R, N) float32, R <= N.
    """

    mean_abs: dict[str, Tensor]
    span: dict[str, Tensor]


def decoder_mlps(model: nn.Module) -> list[MLP]:
    """The MLP blocks of the decoder.

    Raises:
        ModelError: if it has none.
    """
    mlps = [mlp for mlp in anatomy(model).mlps if mlp.tower == "language"]
    if not mlps:
        raise ModelError(
            "the decoder of this model has no MLP block with one or two linear layers up and one down around "
            "an activation; use a method that trains weights, such as npo"
        )
    return mlps


def plain_mlps(model: nn.Module) -> list[MLP]:
    """The decoder's MLP blocks with a down projection of their own.

    Raises:
        ModelError: if there is none, or one is quantised or adapted.
    """
    mlps = [mlp for mlp in decoder_mlps(model) if mlp.expert is None]
    if not mlps:
        raise ModelError("the decoder has stacked experts alone: expected linear down projections")
    for mlp in mlps:
        down_weight(model, mlp)
    return mlps


def layers_between(mlps: Sequence[MLP], first: int, last: int | None) -> list[MLP]:
    """The blocks of the layers from ``first`` to ``last``, counted from 1; None: to the decoder's last.

    Raises:
        ModelError: if the decoder has no such layers.
    """
    count = max(mlp.layer for mlp in mlps) + 1
    last = count if last is None else last
    if not 1 <= first <= last <= count:
        raise ModelError(
            f"layers are {first} to {last}: expected them within 1 to {count}, those of the decoder"
        )
    return [mlp for mlp in mlps if first <= mlp.layer + 1 <= last]


@torch.no_grad()
def pooled_neurons(model: nn.Module, inputs: Inputs, mlps: Sequence[MLP]) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of the neurons' values over each sample's positions, from one forward pass.

    Args:
        model: a multimodal LLM.
        inputs: padded inputs of B samples with ``labels``.
        mlps: decoder MLPs.

    Returns:
        MLP name -> (B, 3, N) float32: sum of abs(a) over answer-predicting positions, sum of a over them, and
        sum of a over the other unpadded positions; zeros for an MLP that no input reached. Second, the number
        of positions of both kinds, (B, 2).
    """
    sums: dict[str, list[Tensor]] = {mlp.name: [] for mlp in mlps}
    counts = []
    weights = torch.zeros(0)

    def record(name: str, values: Tensor) -> None:
        values = values.detach().float().reshape(*weights.shape[::2], -1)  # experts see (B T, N)
        answers, remaining = torch.bmm(weights, values).unbind(1)
        sizes = torch.bmm(weights[:, :1], values.abs())[:, 0]
        sums[name].append(torch.stack([sizes, answers, remaining], dim=1))

    with measuring_mode(model) as handles:
        for part in separable(model, inputs):  # before there are hooks, as it may call the model
            answers = torch.nn.functional.pad(part["labels"][:, 1:] != IGNORED, (0, 1))
            unpadded = part["attention_mask"].bool() if "attention_mask" in part else torch.ones_like(answers)
            weights = torch.stack([answers, unpadded & ~answers], dim=1).float()
            counts.append(weights.sum(dim=2))
            if not handles:
                handles += [watch_neurons(model, mlp, functools.partial(record, mlp.name)) for mlp in mlps]
            before = {name: len(rows) for name, rows in sums.items()}
            forward(model, part)
            for mlp in mlps:
                if len(sums[mlp.name]) == before[mlp.name]:
                    sums[mlp.name].append(weights.new_zeros(len(weights), 3, mlp.width))
    return {name: torch.cat(rows) for name, rows in sums.items()}, torch.cat(counts)


def pooled_rows(sums: Tensor, counts: Tensor) -> Tensor:
    """For one MLP, each sample's means over answer-predicting positions and over the others, (2 B, N)."""
    return (sums[:, 1:] / counts.clamp(min=1).unsqueeze(2)).flatten(0, 1)


def measure_retained(
    model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[Sample], *, batch_size: int
) -> RetainStatistic:
    """The statistic of a model on retain samples, from one forward pass.

    Raises:
        ValueError: if there is no sample.
        ModelError: if the decoder has no MLP block.
    """
    if not samples:
        raise ValueError("retain is empty: expected training facts to retain, or a saved retain statistic")
    mlps, device = decoder_mlps(model), next(model.parameters()).device
    totals: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {mlp.name: [] for mlp in mlps}
    positions = torch.zeros((), device=device)
    for batch in Encoder(processor, samples).batches(batch_size, label="retain statistic"):
        sums, counts = pooled_neurons(model, to_device(batch, device), mlps)
        positions = positions + counts[:, 0].sum()
        for name, values in sums.items():
            total = values[:, 0].sum(dim=0)
            totals[name] = totals[name] + total if name in totals else total
            rows[name].append(pooled_rows(values, counts).cpu())
    return RetainStatistic(
        {name: (total / positions).cpu() for name, total in totals.items()},
        {name: _compressed(torch.cat(parts)) for name, parts in rows.items()},
    )


def span_of(rows: Tensor, energy: float) -> Tensor:
    """Orthonormal rows (K, N): the fewest directions that hold this share of the squared length of the rows.

    Args:
        rows: (R, N).
        energy: in (0, 1]; at 1 every direction whose singular value exceeds rounding errors.
    """
    _, values, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    nonzero = values > max(rows.shape) * torch.finfo(torch.float32).eps * values.max()
    needed = values.square().cumsum(0) - values.square() < energy * values.square().sum()
    return directions[nonzero & needed].float()


def save_statistic(path: Path, statistic: RetainStatistic, *, metadata: Mapping[str, Any]) -> None:
    """Write a statistic.

    Args:
        path: the safetensors file.
        statistic: what to write.
        metadata: what it was made from, including ``model_digest``.
    """
    tensors = {f"{name}/mean_abs": value for name, value in statistic.mean_abs.items()}
    tensors |= {f"{name}/span": value for name, value in statistic.span.items()}
    record = json.dumps({"kind": KIND, **metadata}, sort_keys=True)
    save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, path, {METADATA_KEY: record})


def load_statistic(path: Path, *, model: PreTrainedModel) -> RetainStatistic:
    """Read a statistic.

    Raises:
        ArtifactError: if the file is damaged, holds something else, or was made from other weights.
    """
    check_digest(path, read_metadata(path, kind=KIND), model)
    parts: dict[str, dict[str, Tensor]] = {"mean_abs": {}, "span": {}}
    for key, tensor in load_file(path).items():
        name, _, part = key.rpartition("/")
        parts[part][name] = tensor
    return RetainStatistic(**parts)


def _compressed(rows: Tensor) -> Tensor:
    """At most N rows with the same Gram matrix."""
    if len(rows) <= rows.shape[1]:
        return rows
    _, values, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    return (values.unsqueeze(1) * directions).float()
