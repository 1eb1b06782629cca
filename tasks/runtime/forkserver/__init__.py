"""Stages that start in no time: a process that has imported what they need forks for each of them.

Importing torch and transformers takes a stage seconds, and a run has some twenty stages: on a small model
that is a third of all its time. So the first stage that DVC starts leaves a fork server behind (`__main__`),
which imports in the background. Those after it find it and hand over to it their arguments, folder,
environment and open files. Project code is not among what is imported: every stage reads it anew.

The server ends with its owner, the DVC or the flow whose stages it forks for. Linux without a GPU only: what
CUDA is to a process cannot be forked, and where there is a GPU seconds do not count.
EFFACE_FORK_SERVER=off does without.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

OWNER = "EFFACE_FORK_SERVER"
"""Environment variable: process id of the owner, `off`, or not set: DVC, which started the stage."""

FORKED = (
    *("base", "vanilla", "retrained", "saliency", "control", "importance", "unlearn", "prune"),
    *("evaluate", "attack", "report"),
)
_FIRST = ("benchmark", "prepare")
"""Stages that need little, and that others follow."""

_GPUS = ("dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
_FREE = {"PATH", "PWD", "OLDPWD", "SHLVL", "_", "OMP_NUM_THREADS", "PYTHONUNBUFFERED", "COLUMNS", "LINES"}
_FREE_KINDS = ("DVC_", "EFFACE_", "PREFECT_", "MLFLOW_")
_LEAVE_SECONDS = 30.0


def hand_over(stage: str) -> None:
    """Let the fork server run this process's command, and end as it ends; return where there is none.

    Call it before anything is read or done. Where a server is missing, this starts one for later stages.

    Args:
        stage: what this process was started for.
    """
    owner = _owner() if stage in (*_FIRST, *FORKED) and _can_fork() else None
    if owner is None:
        return
    if (address := address_of(owner)) is None:
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.connect(str(address))
        except OSError:
            if stage != "report":  # the last one
                _start(owner)
            return
        if stage in FORKED:
            _wait(connection)


def address_of(owner: int) -> Path | None:
    """Where the fork server of a process listens: a socket in a folder that this user alone may enter.

    None if there is no such folder to be had, because its place is taken, by somebody else's for instance:
    nobody else shall run anything as us.
    """
    folder = Path(tempfile.gettempdir()) / f"efface-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder / f"{owner}.socket" if private else None


def settings(environment: dict[str, str]) -> dict[str, str]:
    """The variables that imported libraries may have read: a server forks only for who has the same."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _FREE and not name.startswith(_FREE_KINDS)
    }


def _owner() -> int | None:
    """The process whose stages the server forks for; None: nobody wants one."""
    if not os.environ.get("DVC_STAGE"):
        return None
    given = os.environ.get(OWNER) or str(os.getppid())
    return int(given) if given.isdecimal() else None


def _can_fork() -> bool:
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        return False
    return not any(True for pattern in _GPUS for _ in Path("/").glob(pattern))


def _start(owner: int) -> None:
    quiet = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-m", __name__, str(owner)],
        # One thread, whoever starts it: what is forked sets its own number.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,  # Ctrl-C is for the stages, which hear of it through those who wait for them
    )


def _wait(connection: socket.socket) -> None:
    """Ask for this process's command; end as it ends, or return if the server does not run it."""
    from tasks.runtime.processes import end_with_parent

    had: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        had.append(number)
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))

    request = {
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "prefix": sys.prefix,
    }
    body = json.dumps(request).encode()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    started = ended = b""
    with contextlib.suppress(OSError), connection.makefile("rb") as answers:
        socket.send_fds(connection, [len(body).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(body)
        for number in before:
            signal.signal(number, pass_on)
        end_with_parent()
        if started := answers.readline():
            ended = answers.readline()
    if started:
        raise SystemExit(int(ended) if ended else _abandoned(int(started)))
    for number, handler in before.items():
        signal.signal(number, handler)
    for number in had:  # while there was still hope
        os.kill(os.getpid(), number)


def _abandoned(process: int) -> int:
    """The server is gone, which ends the stage as well: wait for that."""
    with contextlib.suppress(OSError):
        select.select([os.pidfd_open(process)], [], [], _LEAVE_SECONDS)
    sys.stderr.write("the fork server was ended, and with it the stage; run again: finished work is kept\n")
    return 1
