"""Nothing that a flow started survives it, even when the flow is killed outright.

Stages and DVC ask the kernel to end with their parent; Prefect's temporary server does not. So a small
process waits for the end of the flow and then ends what still carries its mark in the environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

MARK = "EFFACE_FLOW_MARK"


def watch_over_this_process() -> None:
    """Mark this process's future children and start the watcher; Linux only, elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    watcher = [sys.executable, "-S", str(Path(__file__).resolve()), str(os.getpid())]
    os.environ[MARK] = uuid.uuid4().hex
    quiet = subprocess.DEVNULL
    # In a session of its own: what ends the flow's process group must not end its watcher.
    subprocess.Popen(
        [*watcher, os.environ[MARK]],
        start_new_session=True,
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        env={name: value for name, value in os.environ.items() if name != MARK},
    )


def watch(process: int, mark: str) -> None:
    """Wait for a process to end, then end every process that carries the mark."""
    with contextlib.suppress(ProcessLookupError):
        poll = select.poll()
        poll.register(os.pidfd_open(process), select.POLLIN)
        poll.poll()
    for found in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found, signal.SIGTERM)


def marked(mark: str) -> list[int]:
    """Processes of this user with the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
