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

from efface.data.encoding import Inputs, to_device
from efface.errors import ModelError
from efface.models.anatomy import MLP, has_class_token, vision_tower


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
        MLP name -> statistics. An MLP that no input reached, such as the vision tower's in text-only batches,
        is left out.

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
            batch = to_device(batch, device)
            model(**{key: value for key, value in batch.items() if key != "labels"})
            size = len(batch["input_ids"])
            seen += size
            for mlp in mlps:
                if mlp.name not in values:
                    continue
                z = _sample_means(mlp, values.pop(mlp.name), batch["attention_mask"], skip)
                if len(z) != size:
                    raise ModelError(
                        f"{mlp.name} sees {len(z)} rows for {size} samples, so its activations cannot be "
                        f"told apart by sample; "
                        "use batches with one picture per sample"
                    )
                magnitude = z.abs()
                parts = [magnitude.sum(0), z.square().sum(0), (magnitude > active_above).sum(0).double()]
                total = sums.setdefault(mlp.name, [torch.zeros_like(p) for p in parts])
                torch._foreach_add_(total, parts)
    if seen == 0:
        raise ValueError("cannot measure activations of no samples: `batches` is empty")
    return {name: ActivationStatistics(seen, *(part.cpu() for part in parts)) for name, parts in sums.items()}


def _sample_means(mlp: MLP, values: Tensor, attention_mask: Tensor, skip: int) -> Tensor:
    """Mean over tokens, (B, T, N) -> (B, N) float64: patch tokens in the vision tower, unpadded ones in the
    decoder."""
    if mlp.tower == "vision":
        return values[:, skip:].double().mean(dim=1)
    weights = attention_mask.to(torch.float64).unsqueeze(-1)
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

            def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = mlp.name) -> None:
                values[name] = args[0].detach()

            handles.append(model.get_submodule(mlp.down).register_forward_pre_hook(keep))
        yield values
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
