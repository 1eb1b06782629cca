"""Processes that end together."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to send SIGTERM to this process when its parent dies, however it dies.

    Linux only; elsewhere nothing happens. The kernel means the parent's *thread* that started this process,
    so that thread has to be the one that waits for it.

    Args:
        parent: process id of the parent, if known: should it be gone already, this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def leave_in_order(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM with an ordinary exit, in which `finally` blocks run, undisturbed by a second one.

    A flow, the kernel at its end and its watcher each send one; what the exit writes must not be cut off.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)
