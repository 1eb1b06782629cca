"""Activation statistics of MLP neurons, from one forward pass per sample.

A neuron's value for a sample, z, is its mean over the sample's tokens (without padding; patch tokens in the
vision tower). Only sums over samples are stored; activations are averaged on the fly. Means over tokens are
float32, like the activations; sums over samples are float64, since a variance is the small difference of two
of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.encoding.batches import Inputs, one_picture_each, split, to_device
from efface.encoding.forward import model_inputs, supports_batches
from efface.errors import ModelError
from efface.models.anatomy import MLP, has_class_token, image_token_id, vision_tower
from efface.models.mlps import watch_neurons
from efface.processes import sum_over_processes


@dataclass(frozen=True)
class Units:
    """Units that are measured and ranked together: the neurons of an MLP, or the outputs of a layer.

    Attributes:
        name: name of the module.
        tower: ``vision`` or ``language``.
        layer: index of the layer, from 0.
        width: number of units.
    """

    name: str
    tower: str
    layer: int
    width: int


@dataclass(frozen=True)
class ActivationStatistics:
    """Sums over samples for the N neurons of one MLP, float64, shape (N,).

    Attributes:
        count: number of samples.
        sum_abs: sum of abs(z).
        sum_square: sum of z squared; the energy E.
        active: number of samples with abs(z) above the activity threshold.
    """

    count: int
    sum_abs: Tensor
    sum_square: Tensor
    active: Tensor

    @property
    def mean_abs(self) -> Tensor:
        """Mean of abs(z) over the samples."""
        return self.sum_abs / self.count

    @property
    def variance(self) -> Tensor:
        """Population variance of abs(z), >= 0."""
        return (self.sum_square / self.count - self.mean_abs.square()).clamp_min(0)

    def repeated(self, count: int) -> ActivationStatistics:
        """The statistics of ``count`` copies of the samples, for an input that never varies."""
        return ActivationStatistics(
            self.count * count, self.sum_abs * count, self.sum_square * count, self.active * count
        )


def neuron_units(mlps: Iterable[MLP]) -> list[Units]:
    """The neurons of each MLP block."""
    return [Units(mlp.name, mlp.tower, mlp.layer, mlp.width) for mlp in mlps]


@torch.no_grad()
def activation_statistics(
    model: nn.Module, batches: Iterable[Inputs], *, mlps: Sequence[MLP], active_above: float
) -> dict[str, ActivationStatistics]:
    """Statistics of every neuron of the given MLPs over the samples of all batches.

    Under ``torch.distributed`` they include the batches of all processes.

    Args:
        model: a multimodal LLM; measured in evaluation mode and unchanged afterwards.
        batches: padded model inputs with ``attention_mask``. Each of several processes passes its share
            (``efface.processes.share``), which may be empty.
        mlps: MLP blocks to watch, from ``efface.models.anatomy``.
        active_above: a neuron is active in a sample if abs(z) exceeds this, > 0.

    Returns:
        MLP name -> statistics. A vision tower's MLP that no input reached, as in text-only batches, has no
        entry; a decoder's counts as silent.

    Raises:
        ValueError: if there is no batch.
        ModelError: if an MLP does not see one row per sample.

    Reference:
        arXiv:2502.15910; one pass instead of one per statistic.
    """
    device = next(model.parameters()).device
    skip = 1 if has_class_token(vision_tower(model)) else 0
    columns = _columns(mlps)
    sums = torch.zeros(3, sum(mlp.width for mlp in mlps), dtype=torch.float64, device=device)
    reached = dict.fromkeys(columns, 0)
    samples = 0
    tokens = _Tokens(torch.ones(1, 1, device=device))
    z = sums[:0]

    def record(mlp: MLP, values: Tensor) -> None:
        if not len(z):  # a comparison of a batch with its samples
            return
        means = _sample_means(mlp, values.detach(), tokens, skip)
        if len(means) != len(z):
            raise ModelError(
                f"{mlp.name} sees {len(means)} rows for {len(z)} samples, so its activations cannot be "
                "assigned to samples; measure a model whose MLPs read one sequence per sample"
            )
        z[:, columns[mlp.name]] = means
        reached[mlp.name] += len(z)

    with measuring_mode(model) as handles:
        handles += [watch_neurons(model, mlp, functools.partial(record, mlp)) for mlp in mlps]
        for batch in batches:
            z = sums[:0]
            parts = _separable(to_device(batch, device), model)
            while parts:
                part = parts.pop(0)
                # The neurons of all MLPs side by side; MLPs that no input reaches stay 0.
                z = torch.zeros(len(part["input_ids"]), sums.shape[1], device=device)
                tokens = _Tokens(part["attention_mask"])
                try:
                    model(**model_inputs(model, part))
                except ModelError:
                    if len(z) == 1:
                        raise
                    parts = split(part, image_token_id(model)) + parts
                    continue
                samples += len(z)
                _add_samples(sums, z.double(), active_above)
    samples = add_over_processes(samples, reached, [sums])
    # A decoder layer that text bypasses (cross-attention) contributes to no answer: it counts as silent.
    names = [mlp.name for mlp in mlps if reached[mlp.name] or mlp.tower == "language"]
    return {name: ActivationStatistics(samples, *sums[:, columns[name]].cpu().clone()) for name in names}


def _add_samples(sums: Tensor, z: Tensor, active_above: float) -> None:
    """Add samples to the three sums, in place: memory costs more time than arithmetic.

    Args:
        sums: of abs(z), of z squared, and of active samples, (3, N) float64.
        z: values of B samples, (B, N) float64; overwritten.
        active_above: see ``activation_statistics``.
    """
    sums[1] += z.square().sum(0)
    sums[0] += z.abs_().sum(0)
    sums[2] += z.gt_(active_above).sum(0)


def add_over_processes(samples: int, reached: dict[str, int], sums: Sequence[Tensor]) -> int:
    """Replace this process's counts and sums, in place, by those of all processes; returns their samples.

    Raises:
        ValueError: if no process has a sample.
    """
    tally = torch.tensor([samples, *reached.values()], device=sums[0].device)
    sum_over_processes([tally, *sums])
    total, *counts = tally.tolist()
    reached.update(zip(reached, counts, strict=True))
    if total == 0:
        raise ValueError("cannot measure activations of no samples: `batches` is empty")
    return int(total)


def _columns(mlps: Sequence[MLP]) -> dict[str, slice]:
    """Position of each MLP's neurons among those of all MLPs side by side."""
    columns, start = {}, 0
    for mlp in mlps:
        columns[mlp.name] = slice(start, start + mlp.width)
        start += mlp.width
    return columns


def _separable(batch: Inputs, model: nn.Module) -> list[Inputs]:
    """The batch itself if the vision tower sees one row per sample; its samples one by one if pictures come
    in tiles or as one long row of patches, or if batches differ from their samples."""
    if ("pixel_values" not in batch or one_picture_each(batch)) and supports_batches(model, batch):
        return [batch]
    return split(batch, image_token_id(model))


class _Tokens:
    """Weights of a batch's tokens, computed once for all layers.

    Attributes:
        shape: (B, T).
        weights: 1 / tokens of the sample for tokens, 0 for padding, (B, 1, T) float32.
    """

    def __init__(self, attention_mask: Tensor):
        self.shape = attention_mask.shape
        weights = attention_mask.float().unsqueeze(1)
        self.weights = weights / weights.sum(dim=2, keepdim=True)


def _sample_means(mlp: MLP, values: Tensor, tokens: _Tokens, skip: int) -> Tensor:
    """Mean over tokens, (B, N) float32: patch tokens in the vision tower, unpadded ones in the decoder.

    Values come as (B, T, N); from experts as (B T, N), and from a vision tower that sees a single sample as
    (tiles, patches, N) or (patches, N).
    """
    if mlp.tower == "vision":
        values = values[:, skip:] if values.dim() == 3 else values
        values = values.flatten(0, -2).unsqueeze(0) if tokens.shape[0] == 1 else values
        return values.mean(dim=1, dtype=torch.float32)
    return torch.bmm(tokens.weights, values.float().view(*tokens.shape, -1)).squeeze(1)


@contextmanager
def measuring_mode(model: nn.Module) -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    """Evaluation mode, and a list for the handles of hooks; both are undone on exit."""
    handles: list[torch.utils.hooks.RemovableHandle] = []
    training = model.training
    try:
        model.eval()
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
