"""Which device a stage may compute on, guarded so that no two stages meet on one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from efface.errors import EffaceError
from tasks.runtime.sharing import COUNT, process_count

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Device:
    """A device that is ours for now."""

    environment: dict[str, str]
    """What the stage's process needs in its environment to use this device."""
    descriptors: tuple[int, ...] = ()
    """Open files that hold the guard; the process inherits them, so the guard outlives a killed flow."""


def gpus() -> list[str]:
    """Names of the CUDA devices this process may use, found without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    return sorted(
        (
            match[1]
            for path in Path("/dev").glob("nvidia*")
            if (match := re.fullmatch(r"nvidia(\d+)", path.name))
        ),
        key=int,
    )


def default_workers() -> int:
    """Stages side by side: as many as there are GPUs for and one that needs none; on the processor two."""
    if names := gpus():
        return max(1, len(names) // process_count()) + 1
    return max(1, min(2, (os.cpu_count() or 1) // process_count()))


@contextlib.contextmanager
def device(*, gpu: bool, workers: int, processes: int = 1) -> Iterator[Device]:
    """Wait for free GPUs and keep them during the block; without a GPU, a share of the processor.

    The guard is a kernel lock on a file: it is free the moment its holders are gone, however they went, and
    it holds between flows of different projects too.

    Args:
        gpu: whether the stage computes with a model at all.
        workers: how many stages share the processor.
        processes: how many processes share the stage; each gets a GPU of its own.

    Raises:
        EffaceError: if there are fewer GPUs than processes.
    """
    names = gpus()
    if not gpu or not names:
        share = max(1, (os.cpu_count() or 1) // (workers * processes))
        yield Device({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))})
        return
    if processes > len(names):
        raise EffaceError(
            f"{COUNT} is {processes}, and there is a GPU for {len(names)}; each process needs one of its own"
        )
    taken = _take(names, processes)
    try:
        yield Device({"CUDA_VISIBLE_DEVICES": ",".join(taken)}, tuple(taken.values()))
    finally:
        for descriptor in taken.values():
            os.close(descriptor)


def _take(names: list[str], count: int) -> dict[str, int]:
    """So many GPUs, all at once, and the open files that guard them. Nobody waits while holding one."""
    while True:
        held: dict[str, int] = {}
        with open(_guard_file("gate"), "a", encoding="utf-8") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # two that each look for two must not stop each other
            for name in names:
                descriptor = os.open(_guard_file(name), os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue
                held[name] = descriptor
                if len(held) == count:
                    return held
            for descriptor in held.values():
                os.close(descriptor)
        time.sleep(_POLL_SECONDS)


def _guard_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"efface-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
