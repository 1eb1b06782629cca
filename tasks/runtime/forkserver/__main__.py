"""The fork server of one owner: python -m tasks.runtime.forkserver OWNER."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime import forkserver, startup
from tasks.runtime.processes import end_with_parent, leave_in_order

_IDLE_SECONDS = 600.0
_OURS = ("tasks", "efface", "flows")


@dataclass
class _Job:
    """A stage that was forked, or is about to be."""

    connection: socket.socket
    descriptors: list[int] = field(default_factory=list)
    process: int = 0
    ended: int = -1
    """Readable once the process has ended."""


class Server:
    """Forks for whoever connects, until its owner is gone or nobody came for long.

    Args:
        listening: the socket it is asked on.
        owner: readable once the owner has ended.
        environment: what libraries found when they were imported.
    """

    def __init__(self, listening: socket.socket, owner: int, environment: dict[str, str]) -> None:
        self._listening, self._owner = listening, owner
        self._environment = forkserver.settings(environment)
        self._jobs: list[_Job] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._selector.register(owner, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Work until the end, in the server: None. In a process that was forked: what it shall run."""
        while True:
            events = self._selector.select(None if self._jobs else _IDLE_SECONDS)
            if not events or any(key.fd == self._owner for key, _ in events):
                self._leave()
                return None
            for key, _ in events:
                if (request := key.data()) is not None:
                    return request

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listening.accept()
        job = _Job(connection)
        try:
            request = self._asked(job)
        except (OSError, ValueError):  # it went away while it asked
            request = None
        if request is None:
            self._forget(job)
            return None
        return self._fork(job, request)

    def _asked(self, job: _Job) -> dict[str, Any] | None:
        """What a client wants; None if it had better do it itself."""
        head, job.descriptors, _, _ = socket.recv_fds(job.connection, 4, 3)
        if len(head) != 4 or len(job.descriptors) != 3:
            return None  # it only looked whether somebody listens
        # No more than that: a signal to pass on may be right behind.
        request = json.loads(job.connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        same = request["prefix"] == sys.prefix
        same &= forkserver.settings(request["environment"]) == self._environment
        return request if same else None

    def _fork(self, job: _Job, request: dict[str, Any]) -> dict[str, Any] | None:
        server = os.getpid()
        if (process := os.fork()) == 0:
            self._become(job, server)
            return request
        self._jobs.append(job)
        _close(job.descriptors)  # the stage alone holds them now, so their readers see when it ends
        job.process, job.ended = process, os.pidfd_open(process)
        self._selector.register(job.ended, selectors.EVENT_READ, lambda: self._reap(job))
        self._selector.register(job.connection, selectors.EVENT_READ, lambda: self._pass_on(job))
        self._tell(job, process)
        return None

    def _become(self, job: _Job, server: int) -> None:
        """In a process that was forked: have the client's files, and nothing of the server's."""
        end_with_parent(server)
        for place, descriptor in enumerate(job.descriptors):
            os.dup2(descriptor, place)
        self._selector.close()
        for other in (job, *self._jobs):
            self._forget(other)
        self._listening.close()
        os.close(self._owner)

    def _pass_on(self, job: _Job) -> None:
        """A client had a signal, or is gone: then the stage has to go too."""
        if job not in self._jobs:  # it has just ended
            return
        try:
            heard = job.connection.recv(1)
        except OSError:
            heard = b""
        if not heard:
            self._selector.unregister(job.connection)
        os.kill(job.process, heard[0] if heard else signal.SIGTERM)  # at worst it waits to be reaped

    def _reap(self, job: _Job) -> None:
        _, status = os.waitpid(job.process, 0)
        code = os.waitstatus_to_exitcode(status)
        self._tell(job, code if code >= 0 else 128 - code)
        self._selector.unregister(job.ended)
        with contextlib.suppress(KeyError):
            self._selector.unregister(job.connection)
        self._jobs.remove(job)
        self._forget(job)

    def _leave(self) -> None:
        """End what was forked, and wait for it."""
        for job in self._jobs:
            os.kill(job.process, signal.SIGTERM)
        for job in list(self._jobs):
            self._reap(job)

    def _tell(self, job: _Job, number: int) -> None:
        with contextlib.suppress(OSError):  # a client that is gone
            job.connection.send(f"{number}\n".encode())

    def _forget(self, job: _Job) -> None:
        job.connection.close()
        _close(job.descriptors)
        if job.ended >= 0:
            os.close(job.ended)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def main(owner: int) -> None:
    """Import, then serve; a process that was forked leaves by the same door and runs its stage."""
    try:
        watched = os.pidfd_open(owner)
    except OSError:  # gone already, or this kernel cannot say
        return
    address = forkserver.address_of(owner)
    if address is None or (listening := _listening(address)) is None:
        return
    signal.signal(signal.SIGTERM, leave_in_order)
    _remove_left_behind(address.parent)
    server, environment = os.getpid(), dict(os.environ)  # libraries set some themselves
    try:
        with startup.uncollected():
            for stage in ("evaluate", "report"):  # between them they need all that any stage needs
                startup.prepare(stage)
        request = None if _has_gpu() else Server(listening, watched, environment).serve()
    finally:
        if os.getpid() == server:
            address.unlink(missing_ok=True)
    if request is not None:
        _run(request)


def _listening(address: Path) -> socket.socket | None:
    """The server's socket; None if another server listens there."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(address))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
            if other.connect_ex(str(address)) == 0:
                return None
        address.unlink(missing_ok=True)  # of a server that was killed
        listening.bind(str(address))
    listening.listen()
    return listening


def _remove_left_behind(folder: Path) -> None:
    """Remove the sockets of owners that are gone, whose servers were killed."""
    for left in folder.glob("*.socket"):
        if not Path(f"/proc/{left.stem}").exists():
            left.unlink(missing_ok=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


def _run(request: dict[str, Any]) -> None:
    """Run a stage as `python -m tasks` does, with this project's code as it is now."""
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[forkserver.OWNER] = "off"
    os.chdir(request["folder"])
    sys.argv[1:] = request["arguments"]
    sys.path[0] = request["folder"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(wanted) if wanted.isdecimal() else len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError):  # a name for `top` and `ps -o comm`, where one may be given
        Path("/proc/self/comm").write_text(" ".join(request["arguments"])[:15])
    for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    code: Any = 1
    try:
        runpy.run_module("tasks", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  # told as an interpreter tells it at its end
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Taking apart what was imported would copy all that is shared with the server, for nothing.
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main(int(sys.argv[1]))
