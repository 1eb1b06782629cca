"""Activation statistics of MLP neurons, from one forward pass per sample.

A neuron's value for a sample, z, is its mean over the sample's tokens (padding left out; patch tokens in the
vision tower). Only sums over samples are kept, never the activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.data.batches import Inputs, split, to_device
from efface.errors import ModelError
from efface.models.anatomy import MLP, has_class_token, image_token_id, vision_tower
from efface.models.blocks import watch_neurons


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
        """The statistics of the same samples seen ``count`` times over, for an input that never varies."""
        return ActivationStatistics(
            self.count * count, self.sum_abs * count, self.sum_square * count, self.active * count
        )


@torch.no_grad()
def activation_statistics(
    model: nn.Module, batches: Iterable[Inputs], *, mlps: Sequence[MLP], active_above: float
) -> dict[str, ActivationStatistics]:
    """Statistics of every neuron of the given MLPs over the samples of all batches.

    Args:
        model: a multimodal LLM; measured in evaluation mode and left as it was found.
        batches: padded model inputs with ``attention_mask``.
        mlps: MLP blocks to watch, from ``efface.models.anatomy``.
        active_above: a neuron is active in a sample when abs(z) exceeds this, > 0.

    Returns:
        MLP name -> statistics. An MLP of the vision tower that no input reached, as in text-only batches, is
        left out; a decoder's that none reached counts as silent.

    Raises:
        ValueError: if there is no batch.
        ModelError: if an MLP does not see one row per sample.

    Reference:
        arXiv:2502.15910; one pass instead of one per statistic.
    """
    device = next(model.parameters()).device
    skip = 1 if has_class_token(vision_tower(model)) else 0
    sums: dict[str, list[Tensor]] = {}
    seen = 0
    with _captured(model, mlps) as values:
        for batch in batches:
            for part in _told_apart(to_device(batch, device), model):
                model(**{key: value for key, value in part.items() if key != "labels"})
                size = len(part["input_ids"])
                seen += size
                for mlp in mlps:
                    if mlp.name not in values:
                        continue
                    z = _sample_means(mlp, values.pop(mlp.name), part["attention_mask"], skip)
                    if len(z) != size:
                        raise ModelError(
                            f"{mlp.name} sees {len(z)} rows for {size} samples, so its activations cannot be "
                            "told apart by sample; use batches of one sample"
                        )
                    magnitude = z.abs()
                    parts = [magnitude.sum(0), z.square().sum(0), (magnitude > active_above).sum(0).double()]
                    total = sums.setdefault(mlp.name, [torch.zeros_like(p) for p in parts])
                    torch._foreach_add_(total, parts)
    if seen == 0:
        raise ValueError("cannot measure activations of no samples: `batches` is empty")
    for mlp in mlps:
        if mlp.tower == "language":  # a decoder layer that text leaves out (cross-attention) adds nothing
            sums.setdefault(mlp.name, [torch.zeros(mlp.width, dtype=torch.float64) for _ in range(3)])
    return {name: ActivationStatistics(seen, *(part.cpu() for part in parts)) for name, parts in sums.items()}


def _told_apart(batch: Inputs, model: nn.Module) -> list[Inputs]:
    """The batch itself where the vision tower sees one row per sample, its samples one by one where pictures
    come in tiles or as one long row of patches."""
    pixels = batch.get("pixel_values")
    if pixels is None or (pixels.dim() == 4 and len(pixels) == len(batch["input_ids"])):
        return [batch]
    return split(batch, image_token_id(model))


def _sample_means(mlp: MLP, values: Tensor, attention_mask: Tensor, skip: int) -> Tensor:
    """Mean over tokens, (B, N) float64: patch tokens in the vision tower, unpadded ones in the decoder.

    Values come as (B, T, N); from experts as (B T, N), and from a vision tower that sees a single sample as
    (tiles, patches, N) or (patches, N).
    """
    if mlp.tower == "vision":
        values = values[:, skip:] if values.dim() == 3 else values
        values = values.flatten(0, -2).unsqueeze(0) if len(attention_mask) == 1 else values
        return values.double().mean(dim=1)
    weights = attention_mask.to(torch.float64).unsqueeze(-1)
    values = values.view(*attention_mask.shape, -1)
    return (values.double() * weights).sum(dim=1) / weights.sum(dim=1)


@contextmanager
def _captured(model: nn.Module, mlps: Sequence[MLP]) -> Iterator[dict[str, Tensor]]:
    """Collect what enters each down projection, in evaluation mode; hooks and mode are put back on
    leaving."""
    values: dict[str, Tensor] = {}
    handles = []
    training = model.training
    try:
        model.eval()
        for mlp in mlps:

            def keep(activations: Tensor, name: str = mlp.name) -> None:
                values[name] = activations.detach()

            handles.append(watch_neurons(model, mlp, keep))
        yield values
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
