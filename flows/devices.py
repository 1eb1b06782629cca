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
    """Stages side by side: one per GPU and one that needs none; on the processor alone, two."""
    return len(gpus()) + 1 if gpus() else min(2, os.cpu_count() or 1)


@contextlib.contextmanager
def device(*, wanted: bool, workers: int) -> Iterator[Device]:
    """Wait for a free GPU and keep it during the block; without a GPU, a share of the processor.

    The guard is a kernel lock on a file: it is free the moment its holders are gone, however they went, and
    it holds between flows of different projects too.

    Args:
        wanted: whether the stage computes with a model at all.
        workers: how many stages share the processor.
    """
    names = gpus()
    if not wanted or not names:
        share = max(1, (os.cpu_count() or 1) // workers)
        yield Device({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))})
        return
    name, descriptor = _take_one(names)
    try:
        yield Device({"CUDA_VISIBLE_DEVICES": name}, (descriptor,))
    finally:
        os.close(descriptor)


def _take_one(names: list[str]) -> tuple[str, int]:
    while True:
        for name in names:
            descriptor = os.open(_guard_file(name), os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return name, descriptor
        time.sleep(_POLL_SECONDS)


def _guard_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"efface-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
