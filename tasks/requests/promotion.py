"""Which version is in production: putting the candidate there, and putting the one before back."""

from __future__ import annotations

from pathlib import Path

from tasks.requests.intake import RequestError
from tasks.requests.registry import CANDIDATE, PRODUCTION, Registry
from tasks.requests.state import forget_outcome, now, read_outcomes, write_outcome


def promote(root: Path, registry: Registry) -> tuple[int, list[str]]:
    """Put the candidate into production.

    Returns:
        Its version, and the requests that are done with it.

    Raises:
        RequestError: if there is none, or it was made from another version than the one in production.
        RegistryError: if MLflow does not answer.
    """
    candidate, production = registry.pointed(CANDIDATE), registry.pointed(PRODUCTION)
    if candidate is None:
        raise RequestError("no candidate waits; make one with: python -m flows.requests run")
    start = registry.versions()[candidate].start
    if start != production:
        raise RequestError(
            f"candidate {candidate} was made from version {start}, and version {production} is in "
            "production: it has not forgotten what that one has; make a new one with: "
            "python -m flows.requests run"
        )
    registry.point(PRODUCTION, candidate)
    registry.unpoint(CANDIDATE)
    done = []
    for request, outcome in read_outcomes(root).items():
        if outcome.version == candidate:
            write_outcome(root, request, outcome.model_copy(update={"status": "done", "time": now()}))
            done.append(request)
    return candidate, done


def rollback(root: Path, registry: Registry, reason: str) -> tuple[int, int, list[str]]:
    """Put the version before the one in production back.

    The requests that only the newer version had honoured need attention; a candidate made from it is dropped,
    and its requests are pending again.

    Args:
        root: the data folder.
        registry: the registered model.
        reason: why, for those who read the requests' state.

    Returns:
        The version that was in production, the one that is now, and the requests that need attention.

    Raises:
        RequestError: if there is nothing to go back to.
        RegistryError: if MLflow does not answer.
    """
    newer = registry.pointed(PRODUCTION)
    if newer is None:
        raise RequestError("nothing is in production yet; the first run puts the vanilla model there")
    older = registry.versions()[newer].start
    if older is None:
        raise RequestError(f"version {newer} is the vanilla model: there is none before it to go back to")
    candidate = registry.pointed(CANDIDATE)
    dropped = candidate if candidate and registry.versions()[candidate].start == newer else None
    registry.point(PRODUCTION, older)
    if dropped is not None:
        registry.unpoint(CANDIDATE)
    concerned = []
    for request, outcome in read_outcomes(root).items():
        if outcome.version == newer:
            why = f"rolled back from version {newer} to {older}: {reason}"
            update = {"status": "needs-attention", "reasons": [why], "time": now()}
            write_outcome(root, request, outcome.model_copy(update=update))
            concerned.append(request)
        elif dropped is not None and outcome.version == dropped:
            forget_outcome(root, request)
    return newer, older, concerned


def retry(root: Path, request: str) -> None:
    """Make a request that needs attention pending again.

    Raises:
        RequestError: if it does not need attention.
    """
    outcome = read_outcomes(root).get(request)
    if outcome is None or outcome.status != "needs-attention":
        status = "pending or unknown" if outcome is None else outcome.status
        raise RequestError(f"request {request} is {status}: expected one that needs attention")
    forget_outcome(root, request)
