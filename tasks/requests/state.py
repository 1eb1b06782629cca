"""What became of each request, and the lock of whoever is at work on the production model.

A request's file is the requester's and is never rewritten; what became of it is beside it, in state/. No file
there means pending.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efface.errors import ArtifactError
from tasks.requests.intake import FOLDER, RequestError
from tasks.runtime.artifacts import read_json, write_json

LOCK = Path(".efface") / "requests.lock"
Status = Literal["candidate", "done", "needs-attention"]


class Outcome(BaseModel):
    """What became of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Status
    run: str
    """Folder of the run under .requests."""
    subjects: list[str]
    """Entity ids, as the request meant them then."""
    version: Annotated[int, Field(ge=1)] | None = None
    """Of the registered model that forgets them."""
    certificate: str | None = None
    """Its digest."""
    reasons: list[str] = []
    """Why it needs attention."""
    time: str
    """UTC."""


def now() -> str:
    """The time as states and certificates write it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_outcomes(root: Path) -> dict[str, Outcome]:
    """What became of each request of which something became.

    Raises:
        ArtifactError: if a file is damaged.
    """
    found = {}
    for path in sorted((root / FOLDER / "state").glob("*.json")):
        try:
            found[path.stem] = Outcome.model_validate(read_json(path))
        except (ValidationError, ArtifactError) as error:
            raise ArtifactError(
                f"{path} is damaged ({' '.join(str(error).split())}); restore it from git, or remove it and "
                "the request is pending again"
            ) from error
    return found


def write_outcome(root: Path, request: str, outcome: Outcome) -> None:
    """Write what became of a request, whole or not at all."""
    write_json(_path(root, request), outcome.model_dump(mode="json"))


def forget_outcome(root: Path, request: str) -> None:
    """Make a request pending again."""
    _path(root, request).unlink(missing_ok=True)


def _path(root: Path, request: str) -> Path:
    return root / FOLDER / "state" / f"{request}.json"


def agreed(
    outcomes: Mapping[str, Outcome], production: Collection[int], candidate: int | None
) -> dict[str, Outcome]:
    """The outcomes as the registry has them: somebody may have moved an alias there.

    Args:
        outcomes: as on disk.
        production: version in production and those it was made from.
        candidate: version that waits; None: none does.
    """
    found = {}
    for request, outcome in outcomes.items():
        status: Status = outcome.status
        reasons = outcome.reasons
        if outcome.version is not None and outcome.version in production:
            status, reasons = "done", []
        elif outcome.version is not None and outcome.version == candidate:
            status, reasons = "candidate", []
        elif status == "done":
            status = "needs-attention"
            reasons = [f"version {outcome.version}, which forgot them, is no longer in production"]
        found[request] = outcome.model_copy(update={"status": status, "reasons": reasons})
    return found


@contextlib.contextmanager
def holding(project: Path, what: str) -> Iterator[None]:
    """Hold the production model: a kernel lock, gone the moment its process is, however it went.

    Args:
        project: the project's folder.
        what: what it is held for, as others shall read it.

    Raises:
        RequestError: if another process holds it.
    """
    path = project / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(_holder(path)) from None
        about = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "since": now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(path: Path) -> str:
    who = ""
    with contextlib.suppress(OSError, json.JSONDecodeError, KeyError):
        about = json.loads(path.read_text(encoding="utf-8"))
        who = f" ({about['what']}, process {about['process']} on {about['host']} since {about['since']})"
    return (
        f"another run holds the production model{who}; nothing was changed and every request is kept; "
        "try again when it is done"
    )
