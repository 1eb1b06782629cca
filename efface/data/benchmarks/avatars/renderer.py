"""Takes many pictures, in several processes where there are many."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from types import TracebackType

from tqdm import tqdm

from efface.data.benchmarks.avatars.appearance import Look
from efface.data.benchmarks.avatars.portraits import Shot, portrait

_WORTH = 200
"""Pictures per process from which starting it takes less time than it saves."""


class Renderer:
    """A context in which pictures are taken, with a progress bar.

    Args:
        size: of a picture, pixels on each side.
        total: pictures that will be taken in all.
        workers: processes; None: one per core that this one may use, if each has enough to do.
    """

    def __init__(self, size: int, *, total: int, workers: int | None = None) -> None:
        self._size = size
        self._progress = tqdm(total=total, desc="portraits", unit="picture", mininterval=0.5)
        workers = min(_cores(), total // _WORTH) if workers is None else workers
        self._pool = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._progress.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def pictures(self, shots: Sequence[tuple[Look, Shot]]) -> list[bytes]:
        """PNG files of the shots, in their order; the same however many processes draw them."""
        draw = functools.partial(_drawn, self._size)
        drawn = map(draw, shots) if self._pool is None else self._pool.map(draw, shots, chunksize=16)
        taken = []
        for picture in drawn:
            taken.append(picture)
            self._progress.update()
        return taken


def _drawn(size: int, shot: tuple[Look, Shot]) -> bytes:
    return portrait(*shot, size=size)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """A process that was to draw for one that was killed would wait for work for ever."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
