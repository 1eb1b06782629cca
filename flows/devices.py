"""GPUs for stages: a file lock guards each, so that no two stages of any flow share one."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from efface.errors import EffaceError
from tasks.runtime.sharing import COUNT, process_count

_POLL_SECONDS = 0.5


def gpus() -> list[str]:
    """Names of the CUDA devices that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in map(str.strip, visible.split(",")) if name and name != "-1"]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def default_workers() -> int:
    """Number of stages to run side by side: one per GPU and one more, or two on a processor."""
    if names := gpus():
        return max(1, len(names) // process_count()) + 1
    return max(1, min(2, (os.cpu_count() or 1) // process_count()))


@contextlib.contextmanager
def device(*, processes: int, workers: int) -> Iterator[dict[str, str]]:
    """Wait for GPUs and hold them during the block; without a GPU, a share of the processor.

    The kernel frees a lock when its holder dies.

    Args:
        processes: number of GPUs; 0 for a stage that computes without a model.
        workers: number of stages that share the processor.

    Returns:
        Environment variables for the stage.

    Raises:
        EffaceError: if there are fewer GPUs than processes.
    """
    names = gpus()
    if not processes or not names:
        threads = max(1, (os.cpu_count() or 1) // (workers * max(1, processes)))
        yield {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        return
    if processes > len(names):
        raise EffaceError(
            f"{COUNT} is {processes}, expected at most the number of GPUs, {len(names)}: each "
            "process needs its own"
        )
    locks = {name: FileLock(Path(tempfile.gettempdir()) / f"efface-gpu-{name}.lock") for name in names}
    held: dict[str, FileLock] = {}
    try:
        with FileLock(Path(tempfile.gettempdir()) / "efface-gpus.lock"):  # one waits, the others queue
            while len(held) < processes:
                for name in [name for name in names if name not in held]:
                    with contextlib.suppress(Timeout):
                        locks[name].acquire(timeout=0)
                        held[name] = locks[name]
                    if len(held) == processes:
                        break
                else:
                    time.sleep(_POLL_SECONDS)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(name for name in names if name in held)}
    finally:
        for lock in held.values():
            lock.release()
