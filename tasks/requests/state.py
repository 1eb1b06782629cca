"""The state of each request, apart from the request files, and the lock on the production model.

A request file is never rewritten; its state is a separate file in `data/requests/state`, which the first run
that takes up the request creates.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efface.errors import ArtifactError
from tasks.requests.intake import FOLDER, RequestError
from tasks.runtime.artifacts import read_json, write_json

RUNS = Path(".requests")
"""Folders of the runs, in the project."""
LOCK = Path(".efface") / "requests.lock"
PRODUCTION, CANDIDATE = "production", "candidate"
"""Aliases in MLflow's registry."""
Status = Literal["pending", "candidate", "done", "needs-attention", "withdrawn", "purged"]


class RequestState(BaseModel):
    """The state of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Status
    run: str = ""
    """Folder of the run under .requests."""
    subjects: list[str] = []
    """Entity ids that the request named when it was taken up."""
    registered_model: str | None = None
    """Name in MLflow's registry of the model that forgets them; the next two fields belong to it."""
    version: Annotated[int, Field(ge=1)] | None = None
    model_digest: str | None = None
    certificate: str | None = None
    """Digest of its newest certificate."""
    purge_record: str | None = None
    """Digest of the record of the deletion of its people's data."""
    known: dict[str, float] = {}
    """What the model in production knew about its people before unlearning, in the last run: `knowledge`, the
    probability of their facts; `floor`, the same for a model that never met them; `membership`, an AUC."""
    confirmed: bool = False
    """Whether the operator confirmed it although it names many people, its people are unknown, or similar
    people lose much."""
    reasons: list[str] = []
    """Why it needs attention, or was withdrawn."""
    time: str
    """UTC."""


def now() -> str:
    """The current time in the format of states and certificates."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def state_path(root: Path, request: str) -> Path:
    """Path of the state of a request."""
    return root / FOLDER / "state" / f"{request}.json"


def read_states(root: Path) -> dict[str, RequestState]:
    """The state of each request that was taken up.

    Raises:
        ArtifactError: if a file is damaged.
    """
    states = {}
    for path in sorted((root / FOLDER / "state").glob("*.json")):
        try:
            states[path.stem] = RequestState.model_validate(read_json(path))
        except (ValidationError, ArtifactError) as error:
            raise ArtifactError(
                f"{path} is damaged ({' '.join(str(error).split())}); restore it with: git checkout {path}"
            ) from error
    return states


def write_state(root: Path, request: str, state: RequestState) -> None:
    """Write the state of a request, atomically."""
    write_json(state_path(root, request), state.model_dump(mode="json"))


def reconcile(
    states: Mapping[str, RequestState], name: str, production: Collection[str], candidate: str | None
) -> dict[str, RequestState]:
    """The states according to the registry, where an alias may have been moved, or which may be another one.

    A request is done only if the weights that forgot it, or weights made from them, are in production.

    Args:
        states: the states on disk.
        name: name of the registered model.
        production: digests of the version in production and its ancestors.
        candidate: digest of the candidate version; None: there is none.
    """
    current = {}
    for request, state in states.items():
        digest = state.model_digest if state.registered_model == name else None
        status, reasons = state.status, state.reasons
        if status in ("withdrawn", "purged"):
            pass
        elif digest is not None and digest in production:
            status, reasons = "done", []
        elif digest is not None and digest == candidate:
            status, reasons = "candidate", []
        elif status == "done":
            status = "needs-attention"
            reasons = [
                f"version {state.version} of {state.registered_model}, which forgot them, is not in "
                f"production in {name}, nor is a version made from it"
            ]
        current[request] = state.model_copy(update={"status": status, "reasons": reasons})
    return current


@contextlib.contextmanager
def production_lock(project: Path, command: str) -> Iterator[None]:
    """Let one command at a time change the production model; a dead process holds no lock.

    Args:
        project: the project folder.
        command: name of the command, for the errors of others.

    Raises:
        RequestError: if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    path = project / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".holder")
    try:
        with FileLock(path, timeout=0):
            holder.write_text(f"{command}, process {os.getpid()}, since {now()}", encoding="utf-8")
            yield
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        raise RequestError(
            f"another command holds the production model ({name}); nothing was changed; run again when it "
            "has ended"
        ) from None
