"""A small disk of its own, mounted where that is allowed, and its filling."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from efface.errors import EffaceError
from tasks.runtime.artifacts import disk_is_full


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[bool]:
    """Mount a disk of this size at the folder; yields whether that was allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def free_space(disk: Path, kib: int) -> Iterator[None]:
    """Fill the disk up to so many KiB."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(b"x" * 4096)
    os.truncate(filler, max(0, filler.stat().st_size - kib * 1024))
    try:
        yield
    finally:
        filler.unlink()


ROOM = (0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 512)
"""KiB."""


def repeated(disk: Path, call: Callable[[], object], check: Callable[[], None], scale: int = 1) -> int:
    """Call on an ever less full disk until it succeeds; returns the number of failures.

    Every failure is an error in words, or one that commands put into words, and `check` holds after it.
    """
    for number, kib in enumerate(scale * room for room in ROOM):
        with free_space(disk, kib):
            reason = _failure(call)
        if reason is None:
            return number
        assert disk_is_full(reason) or (isinstance(reason, EffaceError) and "make room" in str(reason)), kib
        check()
    raise AssertionError("it never succeeded")


def _failure(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except (EffaceError, OSError, SafetensorError) as error:
        return error
    return None
