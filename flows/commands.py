"""Child processes of a flow: DVC's public commands, each in a process group that ends with the flow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from efface.errors import EffaceError
from tasks.tracking.client import redact

LAST_LINES = 15
FULL_MEBIBYTES = 100
PROGRESS_SECONDS = 60.0
_OUTCOMES = (
    ("Running stage ", "ran"),
    ("is cached - skipping run, checking out outputs", "restored"),
    ("didn't change, skipping", "cached"),
)
_HOLDER = re.compile(r"\(PID (\d+)\): ")
"""How DVC names a process that holds its lock."""
_children: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()
_fetching = threading.Lock()


class CommandFailed(EffaceError):
    """A command ended with an error; the message holds its last lines."""

    def __init__(self, command: str, code: int, lines: list[str]) -> None:
        if any("is not a git repository" in line for line in lines):
            lines = [*lines, "for a copy without .git: dvc config --local core.no_scm true, or git init"]
        lines = [*lines, *map(_holder, _HOLDER.findall("\n".join(lines)))]
        self.last_line = lines[-1] if lines else f"exit code {code}"
        super().__init__(
            f"{command} failed (exit code {code}). The last lines:\n" + "\n".join(lines[-LAST_LINES:])
        )


def _holder(pid: str) -> str:
    """What the process is that DVC names as the holder of its lock, and what to do about it."""
    try:
        command = " ".join(psutil.Process(int(pid)).cmdline())
    except psutil.Error:
        return f"process {pid} has ended: run again"
    if "dvc" in command:
        return f"process {pid} is working in this project ({command[:100]}): wait for it, or end it"
    return (
        f"process {pid} is not DVC ({command[:100]}) but has the number of one that ended with the "
        "machine or container; remove .dvc/tmp/rwlock and run again"
    )


def dvc(
    *arguments: str,
    log: Callable[[str], None],
    folder: str = ".",
    environment: Mapping[str, str] | None = None,
    stop_at: Callable[[str], bool] = lambda line: False,
) -> list[str]:
    """Run a DVC command and pass on its output line by line.

    Args:
        arguments: arguments of ``dvc``.
        log: receives each line at once.
        folder: the DVC project.
        environment: variables in addition to those of this process.
        stop_at: ends the command at the first line for which it holds.

    Returns:
        All lines.

    Raises:
        CommandFailed: if the command ends with an error, or the flow is ending.
    """
    if _ending.is_set():
        raise CommandFailed(f"dvc {' '.join(arguments)}", 1, ["the flow is ending"])
    # setpriv (util-linux) makes the kernel end the child with this process, even after kill -9.
    setpriv = shutil.which("setpriv")
    child = subprocess.Popen(
        [*([setpriv, "--pdeathsig", "TERM"] if setpriv else []), sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**_environment(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _children.add(child)
    lines: list[str] = []
    next_redraw = time.monotonic() + PROGRESS_SECONDS
    try:
        assert child.stdout is not None
        for line in io.TextIOWrapper(child.stdout, encoding="utf-8", errors="replace", newline=""):
            text = redact(line.rstrip())
            if line.endswith("\r") and text:  # a progress bar redraws its line: one line a minute
                if time.monotonic() < next_redraw:
                    continue
                next_redraw = time.monotonic() + PROGRESS_SECONDS
            if text:
                lines.append(text)
                log(text)
                if stop_at(text):
                    return lines
        code = child.wait()
    finally:
        _terminate(child)
        _children.discard(child)
    if code:
        mebibytes = shutil.disk_usage(folder).free // 2**20
        if mebibytes < FULL_MEBIBYTES:  # DVC's own words may be about links
            lines.append(f"its disk has {mebibytes} MiB left: make room and run again, which continues")
        raise CommandFailed(f"dvc {' '.join(arguments)}", code, lines)
    return lines


def query(*arguments: str, folder: str = ".") -> str:
    """The output of a short DVC command.

    Raises:
        CommandFailed: if it ends with an error.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        lines = [redact(line) for line in answer.stderr.splitlines() if line.strip()]
        raise CommandFailed(f"dvc {' '.join(arguments)}", answer.returncode, lines)
    return answer.stdout


def fetch_outputs(revision: str, files: Mapping[str, Path]) -> None:
    """Copy outputs of an experiment, branch or commit from DVC's cache.

    Args:
        revision: its name.
        files: path in the project to the path of its copy.

    Raises:
        CommandFailed: if one is missing.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        with _fetching:
            outputs = DVCFileSystem(".", rev=revision)
            for path, copy in files.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                outputs.get_file(path, str(copy))
    except (OSError, DvcException) as error:
        raise CommandFailed(f"fetching the results of {revision}", 1, [str(error)]) from error


def stale_stages() -> set[str]:
    """Names of the stages that DVC does not call current.

    Raises:
        CommandFailed: if another DVC process holds the project, or dvc.yaml or dvc.lock is damaged.
    """
    status: dict[str, Any] = json.loads(query("status", "--json"))
    return set(status)


def reproduce(
    *stages: str,
    log: Callable[[str], None],
    folder: str = ".",
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Bring stages up to date with ``dvc repro``.

    Returns:
        "ran", "restored" (from DVC's cache) or "cached" (nothing to do): the first of these that is true of
        any stage.

    Raises:
        CommandFailed: with the last lines of the stage that failed.
    """
    # Stages run side by side and finish at the same moment; each waits for DVC's lock.
    lines = dvc(
        "--wait-for-lock", "repro", *options, *stages, log=log, folder=folder, environment=environment
    )
    return outcome_of(lines)


def outcome_of(lines: Iterable[str]) -> str:
    """The outcome of several stages together, from the output of ``dvc repro`` or ``dvc exp run``."""
    outcomes = {outcome for line in lines for words, outcome in _OUTCOMES if words in line}
    return next((outcome for _, outcome in _OUTCOMES if outcome in outcomes), "cached")


@contextlib.contextmanager
def ending_with_flow() -> Iterator[None]:
    """Terminate the children when the block ends, for whatever reason.

    Without a separate Prefect server, a flow in a terminal ends at once on Ctrl-C or SIGTERM: its temporary
    server gets the same signal, and Prefect would wait minutes for it to accept the last state.
    """
    from prefect.settings import PREFECT_API_URL

    def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
        _terminate_all()
        for child in psutil.Process().children():  # Prefect's temporary server
            child.terminate()
        sys.stderr.write("interrupted; finished stages are kept, and the next run resumes\n")
        sys.stderr.flush()
        os._exit(128 + number)

    _ending.clear()
    handlers = {}
    if not PREFECT_API_URL.value() and threading.current_thread() is threading.main_thread():
        handlers = {n: signal.signal(n, end_at_once) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _terminate_all()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _terminate_all() -> None:
    _ending.set()
    for child in list(_children):
        _terminate(child)


def _terminate(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)


def _environment() -> dict[str, str]:
    """This process's environment, with the interpreter's folder first on the path for dvc.yaml's `python`."""
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": ""}
