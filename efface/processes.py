"""Several processes that measure one thing: each takes its share, and the sums are added up.

Nothing here starts processes: `torchrun` or `accelerate launch` does, and with one process nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch.distributed
from torch import Tensor

T = TypeVar("T")


def share(items: Sequence[T]) -> list[T]:
    """This process's share: disjoint from the other processes', and together with theirs everything."""
    if not _together():
        return list(items)
    return list(items[torch.distributed.get_rank() :: torch.distributed.get_world_size()])


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes, each of which passes the same shapes."""
    if _together():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
