"""One process or several, through Accelerate: each computes on a share, and all keep the same weights.

``accelerate launch`` or ``torchrun`` starts the processes; with one process nothing here does anything. The
gradients are added up by the loop itself, once per term: a step may run the model several times before it
goes backward, and masks and norms need the two terms' gradients apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_LARGE_BYTES = 2**18
"""Tensors from this size on travel alone, and are summed where they are."""
_BUCKET_BYTES = 2**25


class Processes:
    """This process among those that train together."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        # Told to, or without a GPU: else Accelerate would take several processes for strangers.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        self._state = PartialState(cpu=cpu)
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """The device of this process among several; None leaves a lone process where its model is."""
        return self._state.device if self.count > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, all of one shape."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, reduction="sum")

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes, which all pass the same shapes.

        Small tensors travel together: what many short messages cost is the waiting.
        """
        if self.count == 1:
            return
        under_way = []
        for bucket in _buckets(tensors):
            alone = len(bucket) == 1 and bucket[0].is_contiguous()
            sent = bucket[0] if alone else torch.cat([tensor.reshape(-1) for tensor in bucket])
            work = torch.distributed.all_reduce(sent, async_op=True)
            under_way.append((work, sent, [] if alone else bucket))
        for work, sent, bucket in under_way:
            work.wait()
            parts = sent.split([tensor.numel() for tensor in bucket]) if bucket else ()
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, all of one shape, in the order of their ranks."""
        if self.count == 1:
            return [tensor]
        from accelerate.utils import gather

        return list(gather(tensor.unsqueeze(0)))

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._state.wait_for_everyone()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that travel together: large ones alone, the others while they are of one dtype and not too
    many.
    All processes get the same answer for the same shapes."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if tensor.nbytes >= _LARGE_BYTES:
            yield [tensor]
            continue
        size = sum(each.nbytes for each in bucket) + tensor.nbytes
        if bucket and (size > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
