"""Telling the person, those who received the data or the model, and the operator's own systems."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from efface.certificates.letter import letter, letter_html, letter_text
from efface.certificates.seal import DIGEST
from efface.errors import EffaceError
from tasks.config import Params
from tasks.requests.certificates import RECORD_KIND, certificate_of, read_certificates
from tasks.requests.intake import FOLDER, RequestError
from tasks.requests.state import now, read_states
from tasks.runtime.artifacts import writing
from tasks.tracking.client import redact
from tasks.tracking.registry import Registry, Version

WEBHOOK = "EFFACE_REQUESTS_WEBHOOK"
"""Variable with the address that gets each event as JSON; not a parameter, as it may hold a token."""
_SECONDS = 10.0


class NotificationError(EffaceError):
    """The webhook did not accept an event."""


def write_letter(params: Params, root: Path, request: str) -> tuple[Path, Path]:
    """Write the letter to the person as text and HTML; returns both paths.

    Raises:
        RequestError: if the request is not done.
    """
    state = read_states(root).get(request)
    if state is None or state.status not in ("done", "purged"):
        status = state.status if state else "pending or unknown"
        raise RequestError(f"request {request} is {status}: a letter is for one that is done")
    certificate, record = certificate_of(root, request), _purge_record(root, request)
    content = letter(
        certificate,
        date=now()[:10],
        deleted=record["purge"]["time"][:10] if record else None,
        recipients=params.requests.recipients,
    )
    folder = root / FOLDER / "letters"
    paths = folder / f"{request}.txt", folder / f"{request}.html"
    for path, text in zip(paths, (letter_text(content), letter_html(content)), strict=True):
        with writing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return paths


def tell_done(params: Params, root: Path, registry: Registry, requests: Collection[str]) -> list[str]:
    """Write the letter of each request that is done, and post its event; returns lines to print.

    A webhook that does not accept an event is a line too, as `notify` sends it again.
    """
    lines = []
    for request in requests:
        text, _ = write_letter(params, root, request)
        lines.append(f"letter of request {request}: {text}")
        try:
            post(event(params, root, registry, request))
        except NotificationError as error:
            lines.append(f"note: {error}")
    return lines


def event(params: Params, root: Path, registry: Registry, request: str) -> dict[str, Any]:
    """The event about a request that is done; it names no person, only hashes and digests.

    `models_that_know_them` are the versions in MLflow that still have files and were not made from one that
    forgot the people; whoever runs one of them, or a model made from it, must replace it.
    """
    certificate, record = certificate_of(root, request), _purge_record(root, request)
    after = certificate["models"]["after"]
    return {
        "event": "request purged" if record else "request done",
        "request": request,
        "subjects": certificate["request"]["subjects"],
        "registered_model": certificate["models"]["registered_name"],
        "version": after["version"],
        "model_digest": after["digest"],
        "certificate": certificate[DIGEST],
        "purge_record": record[DIGEST] if record else None,
        "recipients": list(params.requests.recipients),
        "models_that_know_them": models_that_know(registry.versions(), after["version"]),
    }


def models_that_know(versions: Mapping[int, Version], forgot: int) -> list[int]:
    """Versions with files that were not made from the version that forgot the people, without base models."""

    def knows(number: int | None) -> bool:
        visited = set[int]()
        while number is not None and number in versions and number not in visited:
            if number == forgot:
                return False
            visited.add(number)
            number = versions[number].parent
        return True

    return [n for n, version in versions.items() if not version.purged and not version.base and knows(n)]


def post(values: Mapping[str, Any]) -> bool:
    """Send an event to the webhook; False if none is set.

    Raises:
        NotificationError: if it does not accept the event.
    """
    import httpx

    address = os.environ.get(WEBHOOK)
    if not address:
        return False
    try:
        httpx.post(address, json=dict(values), timeout=_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotificationError(
            f"{WEBHOOK}: {redact(address)} did not accept the event ({type(error).__name__}: "
            f"{redact(str(error))}); send it again with: python -m flows.requests notify ID"
        ) from error
    return True


def _purge_record(root: Path, request: str) -> dict[str, Any] | None:
    records = [item for item in read_certificates(root) if item["kind"] == RECORD_KIND]
    return next((item for item in records if item["request"]["id"] == request), None)
