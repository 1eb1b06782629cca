"""Child processes that cannot outlive the flow: DVC for a stage, and commands of this project.

`python -m flows.children PARENT ARGUMENTS...` is that child: DVC's command line, bound to its parent's life.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from efface.errors import EffaceError
from flows.devices import Device
from tasks.runtime import forkserver
from tasks.tracking.client import redact

_REDRAW_SECONDS = 10.0
_LAST_LINES = 15
_HOURS = "EFFACE_STAGE_HOURS"

_OUTCOMES = (
    (re.compile(r"Running stage "), "ran"),
    (re.compile(r"is cached - skipping run, checking out outputs"), "restored"),
    (re.compile(r"didn't change, skipping"), "cached"),
)

_running: set[subprocess.Popen[bytes]] = set()
_guard = threading.RLock()  # a signal may come while its thread holds it


class StageFailed(EffaceError):
    """A stage ended badly; the message holds its last lines."""


class ChildFailed(EffaceError):
    """A command of this project ended badly; the message holds its last lines."""

    def __init__(self, what: str, code: int, lines: Sequence[str]) -> None:
        self.last = lines[-1] if lines else f"exit code {code}"
        super().__init__(f"{what} failed (exit code {code}). The last lines:\n" + "\n".join(lines))


def reproduce(
    stages: Sequence[str],
    device: Device,
    say: Callable[[str], None],
    *,
    folder: str = ".",
    upstream: bool = False,
    flow_run_id: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Bring stages up to date through DVC.

    Args:
        stages: their names in dvc.yaml.
        device: where they may compute.
        say: gets each line of output as it comes.
        folder: the DVC project.
        upstream: whether to bring up to date what they need as well; else that must be already.
        flow_run_id: what tracking will name as the run's origin.
        environment: variables that the stages get beside this process's own.

    Returns:
        "ran", "restored" (from DVC's cache) or "cached" (nothing to do after all), the first of these that
        holds for any stage.

    Raises:
        StageFailed: with the stages' names and last lines.
    """
    command = [sys.executable, "-m", "flows.children", str(os.getpid())]
    # Our own stages finish side by side, so each waits for DVC's lock instead of failing on it.
    command += ["--wait-for-lock", "--cd", folder, "repro", *([] if upstream else ["--single-item"]), *stages]
    # DVC runs `python`: it shall be this one.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    ours = {"PATH": path, "EFFACE_FLOW_RUN_ID": flow_run_id, **(environment or {}), **device.environment}
    # Each stage has a DVC of its own here; what they share ends with this process, not with the first.
    ours.setdefault(forkserver.OWNER, os.environ.get(forkserver.OWNER, str(os.getpid())))
    seen = set[str]()

    def heard(line: str) -> None:
        seen.update(name for pattern, name in _OUTCOMES if pattern.search(line))
        say(line)

    what = f"stage {stages[0]}" if len(stages) == 1 else f"stages {', '.join(stages)}"
    try:
        _run(command, what, heard, environment=ours, descriptors=device.descriptors, hours=_stage_hours())
    except ChildFailed as error:
        raise StageFailed(str(error)) from None
    return next((name for _, name in _OUTCOMES if name in seen), "ran")


def run_module(
    module: str, arguments: Sequence[str], say: Callable[[str], None], *, flow_run_id: str = ""
) -> list[str]:
    """Run one of this project's commands as ``python -m MODULE``; its last lines.

    Raises:
        ChildFailed: if it ends badly.
    """
    what = " ".join(["python -m", module, *arguments])
    ours = {"EFFACE_FLOW_RUN_ID": flow_run_id}
    return _run([sys.executable, "-m", module, *arguments], what, say, environment=ours)


def _run(
    command: Sequence[str],
    what: str,
    say: Callable[[str], None],
    *,
    environment: Mapping[str, str] | None = None,
    descriptors: tuple[int, ...] = (),
    hours: float | None = None,
) -> list[str]:
    """Run a child, passing on its lines without secrets; its last lines."""
    last = deque[str](maxlen=_LAST_LINES)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        pass_fds=descriptors,
    )
    with _guard:
        _running.add(child)
    expired = threading.Event()
    limit = threading.Timer((hours or 0) * 3600, lambda: (expired.set(), child.terminate()))
    limit.daemon = True
    try:
        if hours is not None:
            limit.start()
        assert child.stdout is not None
        for line in _lines(child.stdout):
            last.append(redact(line))
            say(last[-1])
        code = child.wait()
    except BaseException:  # a signal: whoever goes on, the child does not
        child.terminate()
        raise
    finally:
        limit.cancel()
        with _guard:
            _running.discard(child)
    if expired.is_set():
        last.append(f"stopped after {hours:g} hours ({_HOURS}); a next run goes on from its last checkpoint")
    if code:
        raise ChildFailed(what, code, last)
    return list(last)


def terminate_all(wait: float = 0.0) -> None:
    """End every child that still runs; the stages under them follow.

    Args:
        wait: seconds to wait at most until they are gone, then they are killed; 0: not at all.
    """
    with _guard:
        children = list(_running)
    for child in children:
        child.terminate()
    end = time.monotonic() + wait
    while wait and not all(map(_is_gone, children)):
        if time.monotonic() > end:
            for child in children:
                child.kill()
            return
        time.sleep(0.05)


def _is_gone(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended, asked of the kernel: a handler may have interrupted Popen's own wait."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    return True


def interrupted(number: int, frame: FrameType | None) -> None:
    """Leave at once on Ctrl-C: finished stages are kept, and the watcher ends what is still running."""
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():  # a server of its own is there to be told
        raise KeyboardInterrupt
    # The temporary server got the Ctrl-C too; waiting to tell it would take minutes.
    terminate_all()
    sys.stderr.write("interrupted; finished stages are kept, the next run goes on from there\n")
    sys.stderr.flush()
    os._exit(128 + number)


def _stage_hours() -> float | None:
    """The longest a stage may take; None: as long as it wants."""
    given = os.environ.get(_HOURS)
    try:
        hours = float(given) if given else None
    except ValueError:
        hours = 0.0
    if hours is not None and not 0 < hours < threading.TIMEOUT_MAX / 3600:
        raise StageFailed(f"{_HOURS} is {given!r}: expected a number of hours above 0, such as 12")
    return hours


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come; of a progress bar, which redraws one line, a picture every ten seconds."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending, shown = "", time.monotonic()
    while chunk := os.read(stream.fileno(), 65536):
        *complete, pending = re.split(r"(?<=[\r\n])", (pending + decoder.decode(chunk)).replace("\r\n", "\n"))
        for piece in complete:
            text = piece.rstrip()
            redraw = piece.endswith("\r")
            if not text or (redraw and time.monotonic() - shown < _REDRAW_SECONDS):
                continue
            shown = time.monotonic() if redraw else shown
            yield text
    if pending.strip():
        yield pending.rstrip()


def _main() -> int:
    from tasks.runtime.processes import end_with_parent, leave_in_order

    signal.signal(signal.SIGTERM, leave_in_order)  # DVC takes back its notes of who is at work on what
    signal.signal(signal.SIGINT, lambda number, frame: None)  # Ctrl-C is the flow's, which ends its children
    end_with_parent(int(sys.argv[1]))
    gc.disable()  # DVC starts, reads its files, waits for the stage and ends: what it makes it needs
    from dvc.cli import main

    return int(main(sys.argv[2:]))


if __name__ == "__main__":
    raise SystemExit(_main())
