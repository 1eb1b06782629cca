"""The two sides of a run: which batches of a set meet in which step, and what their loss reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from efface.data.encoding import Encoder, to_device
from efface.unlearning.config import LoopConfig
from efface.unlearning.method import Batch, Loss
from efface.unlearning.processes import Processes
from efface.unlearning.references import References
from efface.unlearning.streams import BatchStream


class Side:
    """The forget set or the retain set in a run.

    Args:
        encoder: its samples.
        loss: its term.
        config: settings of the run.
        seed: seed of its batch order.
        other: the same samples with other answers; None when the loss reads none.
    """

    def __init__(
        self, encoder: Encoder, loss: Loss, config: LoopConfig, seed: int, *, other: Encoder | None = None
    ):
        self.loss = loss
        self.stream = BatchStream(encoder, batch_size=config.batch_size, seed=seed)
        self._encoder, self._other, self._seed = encoder, other, config.seed
        self._references: References | None = None
        self._other_references: References | None = None

    def compare(self, references: Callable[[Encoder], References]) -> None:
        """Give every later batch the reference quantities of its samples."""
        self._references = references(self._encoder)
        if self._other is not None:
            self._other_references = references(self._other)

    def batch(
        self, position: int, device: torch.device, sharing: Processes | None = None
    ) -> tuple[Batch | None, float]:
        """The batch at a position of the stream, with everything the loss reads.

        Args:
            position: counted from 0 over all epochs.
            device: where the model is.
            sharing: processes of which each takes some of the samples; None takes them all.

        Returns:
            The batch, or None if no sample is left for this process, and which share of the samples it has.
        """
        indices = whole = self.stream.indices_at(position)
        if sharing is not None:
            indices = whole[sharing.rank :: sharing.count]
        if not indices:
            return None, 0.0
        inputs = to_device(self._encoder.batch(indices), device)
        other = None
        if self._other is not None:
            others = to_device(self._other.batch(indices), device)
            asked = self._other_references
            other = Batch(others, None if asked is None else asked.of(indices, others), seed=self._seed)
        asked = self._references
        batch = Batch(inputs, None if asked is None else asked.of(indices, inputs), other, self._seed)
        return batch, len(indices) / len(whole)
