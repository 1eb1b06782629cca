"""Batches that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from efface.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShrinkingBatches:
    """Does work on as many items at a time as memory has turned out to allow.

    When a device says that it is out of memory, the batch is tried again in halves, and no later one is
    larger than the half that went well.

    Args:
        size: items to begin with, at least 1.
    """

    def __init__(self, size: int):
        self.size = size

    def run(self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """The results of all items in their order.

        Raises:
            ModelError: if not even a single item fits.
        """
        done: list[Result] = []
        while len(done) < len(items):
            part = items[len(done) : len(done) + self.size]
            found = self._tried(work, part)
            if found is None:
                self._shrink(len(part))
            else:
                done += found
        return done

    def _tried(
        self, work: Callable[[Sequence[Item]], list[Result]], part: Sequence[Item]
    ) -> list[Result] | None:
        """The results, or None if memory ran out; what the attempt held is free when this returns."""
        try:
            return work(part)
        except RuntimeError as error:
            from accelerate.utils.memory import should_reduce_batch_size

            if not should_reduce_batch_size(error):
                raise
            if len(part) == 1:
                raise ModelError(
                    f"not even one question at a time fits into memory ({str(error).splitlines()[0]}); "
                    "use a device with more of it, load the model in half precision (base.dtype), or ask for "
                    "shorter answers (evaluate.max_new_tokens)"
                ) from error
        return None

    def _shrink(self, tried: int) -> None:
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        self.size = (tried + 1) // 2
        logging.getLogger(__name__).warning(
            "out of memory with %d questions at a time; going on with %d", tried, self.size
        )
