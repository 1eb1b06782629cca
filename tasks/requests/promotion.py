"""Changes of the production model (certified candidates, promotion, rollback) and of single requests.

A change is written to a journal before its first step, and each step can be repeated. If a command is killed,
the next one completes the change, so no change stays incomplete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.requests.certificates import write_certificate
from tasks.requests.intake import FOLDER, RequestError
from tasks.requests.state import (
    CANDIDATE,
    PRODUCTION,
    RUNS,
    RequestState,
    now,
    read_states,
    write_state,
)
from tasks.runtime.artifacts import read_json, write_json
from tasks.runtime.results import project_of
from tasks.tracking.registry import Registry, Version

JOURNAL = RUNS / "journal.json"


def apply_change(
    root: Path,
    registry: Registry,
    kind: str,
    *,
    aliases: Mapping[str, int | None],
    states: Mapping[str, RequestState],
    certificates: Sequence[Mapping[str, Any]] = (),
    result: Mapping[str, Any],
) -> None:
    """Write a change to the journal and carry it out.

    Args:
        root: the data folder.
        registry: the registered model.
        kind: `certify`, `promote` or `rollback`.
        aliases: alias to the version that it names afterwards; None: the alias is deleted.
        states: request to its state afterwards.
        certificates: certificates to write.
        result: what a repeated command returns.

    Raises:
        TrackingError: if MLflow does not answer; the change is then completed by the next command.
    """
    journal = {
        "kind": kind,
        "registered_model": registry.name,
        "aliases": dict(aliases),
        "certificates": list(certificates),
        "states": {request: state.model_dump(mode="json") for request, state in states.items()},
        "result": dict(result),
        "completed": False,
    }
    write_json(project_of(root) / JOURNAL, journal)
    resume(root)


def resume(root: Path) -> dict[str, Any] | None:
    """Complete the change that an interrupted command left in the journal; returns it, or None.

    Raises:
        RequestError: if it is a purge, which only `purge` can complete.
        TrackingError: if MLflow does not answer.
    """
    path = project_of(root) / JOURNAL
    journal: dict[str, Any] = read_json(path) if path.is_file() else {"completed": True}
    if journal["completed"]:
        return None
    if journal["kind"] == "purge":
        raise RequestError(
            f"a purge was interrupted; complete it first: python -m flows.requests purge {journal['request']}"
        )
    registry = Registry(project_of(root), journal["registered_model"])
    for alias, number in journal["aliases"].items():
        if number is None:
            registry.delete_alias(alias)
        else:
            registry.set_alias(alias, number)
    for certificate in journal["certificates"]:
        write_certificate(root, certificate)
    for request, state in journal["states"].items():
        write_state(root, request, RequestState.model_validate(state))
    write_json(path, journal | {"completed": True, "certificates": [], "states": {}})
    return journal


def _repeated(root: Path, registry: Registry, kind: str, production: int | None) -> dict[str, Any] | None:
    """Result of the last change, if it was of this kind and its version is still in production."""
    path = project_of(root) / JOURNAL
    journal: dict[str, Any] = read_json(path) if path.is_file() else {}
    same = journal.get("kind") == kind and journal["registered_model"] == registry.name
    return dict(journal["result"]) if same and journal["aliases"][PRODUCTION] == production else None


def _states_of(root: Path, registry: Registry, version: Version) -> dict[str, RequestState]:
    """States of the requests whose subjects this version was the first to forget."""
    key = (registry.name, version.digest)
    return {
        request: state
        for request, state in read_states(root).items()
        if (state.registered_model, state.model_digest) == key and state.status != "withdrawn"
    }


def promote(root: Path, registry: Registry) -> tuple[int, list[str]]:
    """Put the candidate into production; repeating the command changes nothing.

    Returns:
        Its version, and the requests that are done with it.

    Raises:
        RequestError: if there is no candidate, or it was not made from the version in production.
        TrackingError: if MLflow does not answer.
    """
    resume(root)
    aliases, versions = registry.aliases(), registry.versions()
    candidate, production = aliases.get(CANDIDATE), aliases.get(PRODUCTION)
    if candidate is None or candidate not in versions:
        if result := _repeated(root, registry, "promote", production):
            return result["version"], result["requests"]
        raise RequestError("there is no candidate; make one with: python -m flows.requests run")
    start = versions[candidate].parent
    weights = [versions[number].digest for number in (start, production) if number in versions]
    if len(weights) < 2 or weights[0] != weights[1]:
        raise RequestError(
            f"candidate {candidate} was made from version {start}, but version {production} is in "
            "production, and the candidate may lack its requests; make a new one with: "
            "python -m flows.requests run"
        )
    states = {
        request: state.model_copy(update={"status": "done", "reasons": [], "time": now()})
        for request, state in _states_of(root, registry, versions[candidate]).items()
    }
    result = {"version": candidate, "requests": list(states)}
    aliases_after = {PRODUCTION: candidate, CANDIDATE: None}
    apply_change(root, registry, "promote", aliases=aliases_after, states=states, result=result)
    return candidate, list(states)


def rollback(
    root: Path, registry: Registry, reason: str, *, to: int | None = None
) -> tuple[int, int, list[str]]:
    """Put back into production the version that the current one was made from.

    The requests that only newer versions carry out need attention. A candidate made from a newer version is
    dropped, and its requests are pending again. Repeating the command does not go back further.

    Args:
        root: the data folder.
        registry: the registered model.
        reason: stored in the states of the requests.
        to: version to go back to, an ancestor of the version in production; None: its parent.

    Returns:
        The version that was in production, the one that is now, and the requests that need attention.

    Raises:
        RequestError: if there is no such version.
        TrackingError: if MLflow does not answer.
    """
    resume(root)
    aliases = registry.aliases()
    newer = aliases.get(PRODUCTION)
    if newer is None:
        raise RequestError(f"no version of {registry.name} is in production; the first run puts one there")
    result = _repeated(root, registry, "rollback", newer)
    if result and to in (None, newer):
        return result["newer"], result["older"], result["requests"]
    lineage = registry.lineage(newer)
    earlier = [number for number, version in lineage.items() if number != newer and not version.purged]
    if to in lineage and lineage[to].purged:
        raise RequestError(
            f"version {to} of {registry.name} knows people whose data were purged; its files are deleted: "
            f"expected one of: {', '.join(map(str, earlier)) or 'none'}"
        )
    older = to if to is not None else next(iter(earlier), None)
    if older is None or older not in earlier:
        raise RequestError(
            f"version {newer} of {registry.name} is in production, and cannot be rolled back to version "
            f"{older}: expected one it was made from: {', '.join(map(str, earlier)) or 'none: it is vanilla'}"
        )
    newer_versions = [version for number, version in lineage.items() if number > older]
    states: dict[str, RequestState] = {}
    for version in newer_versions:
        for request, state in _states_of(root, registry, version).items():
            why = f"rolled back from version {newer} to {older}: {reason}"
            update = {"status": "needs-attention", "reasons": [why], "time": now()}
            states[request] = state.model_copy(update=update)
    requests, aliases_after = list(states), dict[str, int | None]({PRODUCTION: older})
    candidate = registry.versions().get(aliases.get(CANDIDATE, 0))
    if candidate is not None and candidate.parent in {version.number for version in newer_versions}:
        aliases_after[CANDIDATE] = None
        for request, state in _states_of(root, registry, candidate).items():
            states[request] = state.model_copy(update={"status": "pending", "time": now()})
    result = {"newer": newer, "older": older, "requests": requests}
    apply_change(root, registry, "rollback", aliases=aliases_after, states=states, result=result)
    return newer, older, requests


def retry(root: Path, request: str) -> None:
    """Make a request pending again that needs attention or was withdrawn.

    Raises:
        RequestError: if it is neither.
    """
    state = read_states(root).get(request)
    if state is None or state.status not in ("needs-attention", "withdrawn"):
        status = "pending or unknown" if state is None else state.status
        raise RequestError(
            f"request {request} is {status}: expected one that needs attention or was withdrawn"
        )
    update = {"status": "pending", "reasons": [], "time": now()}
    write_state(root, request, state.model_copy(update=update))


def confirm(root: Path, request: str, reason: str) -> None:
    """Confirm a request that names many people, unknown people, or costs similar people much.

    Raises:
        RequestError: if there is no such request, or it is closed or already carried out.
    """
    state = read_states(root).get(request) or RequestState(status="pending", time=now())
    exists = request in [path.stem for path in (root / FOLDER).glob("*.yaml")]  # an id may be no path
    if not exists or state.status not in ("pending", "needs-attention"):
        status = state.status if exists else "unknown"
        raise RequestError(f"request {request} is {status}: expected one that is pending or needs attention")
    update = {"status": "pending", "confirmed": True, "reasons": [reason], "time": now()}
    write_state(root, request, state.model_copy(update=update))


def decline(root: Path, registry: Registry, reason: str) -> tuple[int, list[str]]:
    """Drop the candidate; its requests need attention.

    Returns:
        Its version, and its requests.

    Raises:
        RequestError: if there is no candidate.
        TrackingError: if MLflow does not answer.
    """
    resume(root)
    candidate = registry.versions().get(registry.aliases().get(CANDIDATE, 0))
    if candidate is None:
        raise RequestError("there is no candidate; make one with: python -m flows.requests run")
    update = {"status": "needs-attention", "reasons": [f"declined: {reason}"], "time": now()}
    states = {
        request: state.model_copy(update=update)
        for request, state in _states_of(root, registry, candidate).items()
    }
    result = {"version": candidate.number, "requests": list(states)}
    apply_change(root, registry, "decline", aliases={CANDIDATE: None}, states=states, result=result)
    return candidate.number, list(states)


def withdraw(root: Path, request: str, reason: str) -> None:
    """Close a request that is pending, invalid or needs attention; its file stays unchanged.

    Raises:
        RequestError: if there is no such request, or a model already carries it out.
    """
    state = read_states(root).get(request)
    files = [path.stem for path in (root / FOLDER).glob("*.yaml")]
    if request not in files or (state is not None and state.status in ("candidate", "done", "withdrawn")):
        status = "unknown" if request not in files else state.status if state else ""
        raise RequestError(
            f"request {request} is {status}: expected one that is pending, invalid or needs attention"
        )
    update = {"status": "withdrawn", "reasons": [reason], "time": now()}
    write_state(
        root, request, (state or RequestState(status="pending", time=now())).model_copy(update=update)
    )
