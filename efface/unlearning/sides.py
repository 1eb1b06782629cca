"""The two sides of a run: which batches of a set meet in which step, and what their loss reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from efface.data.encoding import Encoder, to_device
from efface.unlearning.config import LoopConfig
from efface.unlearning.method import Batch, Loss
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

    def batch(self, position: int, device: torch.device) -> Batch:
        """The batch at a position of the stream, with everything the loss reads."""
        indices = self.stream.indices_at(position)
        inputs = to_device(self._encoder.batch(indices), device)
        other = None
        if self._other is not None:
            others = to_device(self._other.batch(indices), device)
            asked = self._other_references
            other = Batch(others, None if asked is None else asked.of(indices, others), seed=self._seed)
        asked = self._references
        return Batch(inputs, None if asked is None else asked.of(indices, inputs), other, self._seed)
