"""Out-of-memory backoff: batches that are halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from efface.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")


class MemoryBackoff:
    """Runs work on as many items at a time as fit into memory.

    When a device runs out of memory the batch is retried in halves, and no later batch is larger than the
    half that fitted.

    Args:
        size: initial number of items per batch, at least 1.
    """

    def __init__(self, size: int):
        self.size = size

    def run(self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """The results of all items, in order.

        Raises:
            ModelError: if not even a single item fits.
        """
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        results: list[Result] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.size]
            try:
                results += work(batch)
                continue
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if len(batch) == 1:
                    raise ModelError(
                        "not even one question at a time fits into memory "
                        f"({str(error).splitlines()[0]}); use a device with more memory, load the model in "
                        "half precision, or ask for shorter answers (max_new_tokens)"
                    ) from error
            clear_device_cache(garbage_collection=True)  # the failed attempt's memory is free only now
            self.size = (len(batch) + 1) // 2
            logging.getLogger(__name__).warning(
                "out of memory with %d questions at a time; going on with %d", len(batch), self.size
            )
        return results
