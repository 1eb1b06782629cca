"""The two sides of a run: which batches of a set meet in which step, and what their loss reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from efface.encoding import Encoder, Inputs, to_device
from efface.unlearning.method import Batch, Loss
from efface.unlearning.training.config import LoopConfig
from efface.unlearning.training.processes import Processes
from efface.unlearning.training.references import References
from efface.unlearning.training.streams import BatchStream


class Ahead:
    """One thread that encodes batches before they are asked for, or none.

    Args:
        wanted: whether there is a thread; without one nothing is prepared.
    """

    def __init__(self, wanted: bool):
        # One thread only: tokenizers are not made to be used by two at a time.
        self.thread = ThreadPoolExecutor(1, "batches") if wanted else None

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        if self.thread is not None:
            self.thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Encoded:
    """A batch before it has references: its inputs, and those with the other answers."""

    inputs: Inputs
    other: Inputs | None


class Side:
    """The forget set or the retain set in a run.

    Args:
        encoder: its samples.
        loss: its term.
        config: settings of the run.
        seed: seed of its batch order.
        other: the same samples with other answers; None when the loss reads none.
        ahead: encodes expected batches beside the training.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: Loss,
        config: LoopConfig,
        seed: int,
        *,
        other: Encoder | None = None,
        ahead: Ahead,
    ):
        self.loss = loss
        self.stream = BatchStream(encoder, batch_size=config.batch_size, seed=seed)
        self._encoder, self._other, self._seed = encoder, other, config.seed
        self._references: References | None = None
        self._other_references: References | None = None
        self._ahead = ahead
        self._coming: dict[int, Future[_Encoded]] = {}

    def compare(self, references: Callable[[Encoder, Sequence[int]], References], count: int) -> None:
        """Give each of the first ``count`` batches the reference quantities of its samples."""
        # A run draws a part of a large set only, and asking about the others could take longer than the run.
        needed = sorted({i for position in range(count) for i in self.stream.indices_at(position)})
        self._references = references(self._encoder, needed)
        if self._other is not None:
            self._other_references = references(self._other, needed)

    def expect(self, positions: Iterable[int], sharing: Processes | None = None) -> None:
        """Have the batches at these positions of the stream encoded, if there is a thread for it."""
        if self._ahead.thread is None:
            return
        for position in positions:
            indices = self._share(position, sharing)[0]
            if position not in self._coming and indices:
                self._coming[position] = self._ahead.thread.submit(self._encode, indices)

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
        indices, share = self._share(position, sharing)
        if not indices:
            return None, 0.0
        coming = self._coming.pop(position, None)
        made = self._encode(indices) if coming is None else coming.result()
        inputs = to_device(made.inputs, device)
        other = None
        if made.other is not None:
            others = to_device(made.other, device)
            asked = self._other_references
            other = Batch(others, None if asked is None else asked.of(indices, others), seed=self._seed)
        asked = self._references
        reference = None if asked is None else asked.of(indices, inputs)
        batch = Batch(inputs, reference, other, self._seed)
        return batch, share

    def _share(self, position: int, sharing: Processes | None) -> tuple[Sequence[int], float]:
        """Samples of this process, and how much of the batch they are."""
        whole = self.stream.indices_at(position)
        indices = whole if sharing is None else whole[sharing.rank :: sharing.count]
        return indices, len(indices) / len(whole)

    def _encode(self, indices: Sequence[int]) -> _Encoded:
        other = None if self._other is None else self._other.batch(indices)
        return _Encoded(self._encoder.batch(indices), other)
