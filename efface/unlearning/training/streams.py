"""Which samples meet in which step: batches drawn without replacement, a pure function of seed and position.

Because the batch at a position can be worked out without walking there, resuming needs no state but
the number of steps done.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from efface.encoding import Encoder, Inputs


class BatchStream:
    """An endless sequence of batches; every epoch visits each sample once, in a new order.

    Multimodal and text-only samples are never in one batch.

    Args:
        encoder: the samples.
        batch_size: samples per batch; the last batch of each modality in an epoch may be smaller.
        seed: seed of the orders.

    Raises:
        ValueError: if there is no sample.
    """

    def __init__(self, encoder: Encoder, *, batch_size: int, seed: int):
        if len(encoder) == 0:
            raise ValueError("cannot draw batches from an empty set of samples")
        self.encoder = encoder
        self.batch_size = batch_size
        self.seed = seed
        pictured = [i for i, sample in enumerate(encoder.samples) if sample.image_bytes is not None]
        plain = [i for i, sample in enumerate(encoder.samples) if sample.image_bytes is None]
        self._kinds = [kind for kind in (pictured, plain) if kind]
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that visit every sample once."""
        return sum(-(-len(kind) // self.batch_size) for kind in self._kinds)

    def indices_at(self, position: int) -> Sequence[int]:
        """Sample indices of the batch at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[offset]

    def batch_at(self, position: int) -> Inputs:
        """The padded batch at a position."""
        return self.encoder.batch(self.indices_at(position))

    def _shuffled(self, epoch: int) -> list[list[int]]:
        order = random.Random(f"{self.seed}/{epoch}")
        batches = []
        for kind in self._kinds:
            shuffled = order.sample(kind, len(kind))
            batches += [shuffled[i : i + self.batch_size] for i in range(0, len(shuffled), self.batch_size)]
        order.shuffle(batches)
        return batches
