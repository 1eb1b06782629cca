"""Processes that end together."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when its parent dies, however it dies.

    Linux only; elsewhere nothing happens. The kernel means the parent's *thread* that started this process,
    so that thread has to be the one that waits for it.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died just before we asked
        os.kill(os.getpid(), signal.SIGTERM)
