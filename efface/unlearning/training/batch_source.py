"""The samples of each step, and the batches that the losses read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from efface.data.samples import Sample
from efface.encoding import Encoder, to_device
from efface.processes import share
from efface.unlearning.method import Batch
from efface.unlearning.training.references import CachedReferences, ReferenceComputation, References


class EpochSampler:
    """Endless batches of sample indices; every epoch draws each sample once, in a new order.

    The batch at a position is a function of seed and position, so a resumed run needs only its step.
    Multimodal and text-only samples are never mixed in a batch.

    Args:
        samples: the samples to draw from.
        batch_size: samples per batch; the last batch of each modality in an epoch may be smaller.
        seed: seed of the orders.

    Raises:
        ValueError: if there is no sample.
    """

    def __init__(self, samples: Sequence[Sample], *, batch_size: int, seed: int):
        if not samples:
            raise ValueError("samples is empty: expected at least one sample to draw batches from")
        self.batch_size = batch_size
        self.seed = seed
        multimodal = [i for i, sample in enumerate(samples) if sample.image_bytes is not None]
        text_only = [i for i, sample in enumerate(samples) if sample.image_bytes is None]
        self._modalities = [indices for indices in (multimodal, text_only) if indices]
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in which every sample is drawn once."""
        return sum(-(-len(indices) // self.batch_size) for indices in self._modalities)

    def indices_at(self, position: int) -> list[int]:
        """Sample indices of the batch at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[offset]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        order = random.Random(f"{self.seed}/{epoch}")
        batches = []
        for indices in self._modalities:
            shuffled = order.sample(indices, len(indices))
            batches += [shuffled[i : i + self.batch_size] for i in range(0, len(shuffled), self.batch_size)]
        order.shuffle(batches)
        return batches


class BatchSource:
    """The batches of the forget or the retain set, with everything that the method's loss reads.

    Each of several processes takes its share of the samples of every batch.

    Args:
        encoder: the samples.
        batch_size: samples per batch, of all processes together.
        order_seed: seed of the batch order.
        seed: seed of the run, for the losses.
        alternative: the same samples with alternative answers; None if the loss reads none.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch_size: int,
        order_seed: int,
        seed: int,
        alternative: Encoder | None = None,
    ):
        self.sampler = EpochSampler(encoder.samples, batch_size=batch_size, seed=order_seed)
        self._encoders = [encoder] if alternative is None else [encoder, alternative]
        self._references: list[References | None] = [None] * len(self._encoders)
        self._seed = seed

    def add_references(self, computation: ReferenceComputation, batches: int, folder: Path | None) -> None:
        """Add reference values to the batches.

        Args:
            computation: how to compute them.
            batches: number of batches in the run; values are computed only for their samples.
            folder: where to store values, which are then computed now; None computes them with each batch.
        """
        if folder is None:
            self._references = [computation for _ in self._encoders]
            return
        indices = sorted({i for position in range(batches) for i in share(self.sampler.indices_at(position))})
        self._references = [
            CachedReferences(
                computation, encoder, indices, batch_size=self.sampler.batch_size, folder=folder / str(number)
            )
            for number, encoder in enumerate(self._encoders)
        ]

    def batch(self, position: int, device: torch.device) -> tuple[Batch | None, float]:
        """This process's share of the batch at a position, and its fraction of the batch.

        None and 0 if the batch has no sample for this process.
        """
        whole = self.sampler.indices_at(position)
        indices = share(whole)
        batch = None
        for encoder, references in reversed([*zip(self._encoders, self._references, strict=True)]):
            if indices:
                inputs = to_device(encoder.batch(indices), device)
                values = None if references is None else references(indices, inputs)
                batch = Batch(inputs, values, alternative=batch, seed=self._seed)
        return batch, len(indices) / len(whole)
