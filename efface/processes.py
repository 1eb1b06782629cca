"""Sharing work between several processes through torch.distributed.

``torchrun`` or ``accelerate launch`` starts them. Nothing changes for a single process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch.distributed
from torch import Tensor

T = TypeVar("T")


def join_processes() -> None:
    """Join the processes that a launcher started together with this one, unless already joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined():
        return
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())


def process_count() -> int:
    """Number of processes that work together, at least 1."""
    return torch.distributed.get_world_size() if _joined() else 1


def process_rank() -> int:
    """Rank of this process, from 0 on; process 0 writes files and shows progress."""
    return torch.distributed.get_rank() if _joined() else 0


def share(items: Sequence[T]) -> list[T]:
    """This process's share of the items; the shares of all processes partition them."""
    return list(items[process_rank() :: process_count()])


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes, each of which passes the same shapes."""
    if _joined():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def gather_from_processes(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values = [value] * process_count()
    if _joined():
        torch.distributed.all_gather_object(values, value)
    return values


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
