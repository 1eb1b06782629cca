"""Certificates on disk: written as JSON and as a page, read back, held against everything they speak of."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.certificates.seal import DIGEST, chain_faults
from efface.errors import ArtifactError
from efface.subject_hashes import subject_hashes
from tasks.requests.intake import FOLDER, RequestError
from tasks.requests.state import Outcome, read_outcomes
from tasks.runtime.artifacts import digest, read_json, write_json, writing
from tasks.runtime.results import project_of
from tasks.runtime.salt import SALT, SALT_VARIABLE, SaltError, read_salt

KIND = "efface.forget_certificate"


def folder_of(root: Path) -> Path:
    """Where certificates are."""
    return root / FOLDER / "certificates"


def read_certificates(root: Path) -> list[dict[str, Any]]:
    """All certificates in the order of their numbers.

    Raises:
        ArtifactError: if one cannot be read.
    """
    found = []
    for path in sorted(folder_of(root).glob("*.json")):
        certificate = read_json(path)
        if not isinstance(certificate, dict) or certificate.get("kind") != KIND:
            raise ArtifactError(f"{path} is not a certificate (no kind {KIND}); restore it from git")
        whole = {"number": int, "request": dict, DIGEST: str, "files": dict, "run": str}
        wrong = [key for key, kind in whole.items() if not isinstance(certificate.get(key), kind)]
        if wrong or "id" not in certificate["request"] or "previous" not in certificate:
            raise ArtifactError(
                f"{path} was changed: it is no whole certificate ({', '.join(wrong) or 'parts lack'}); "
                "restore it from git"
            )
        found.append(certificate)
    return sorted(found, key=lambda each: int(each["number"]))


def certificate_of(root: Path, request: str) -> dict[str, Any]:
    """The newest certificate of a request.

    Raises:
        RequestError: if it has none.
    """
    found = [each for each in read_certificates(root) if each["request"]["id"] == request]
    if not found:
        raise RequestError(
            f"request {request} has no certificate; it gets one when a model that forgot them passes "
            "the gates"
        )
    return found[-1]


def path_of(root: Path, certificate: Mapping[str, Any]) -> Path:
    """Its JSON file; the page has the same name with .html."""
    return folder_of(root) / f"{certificate['number']:04}-{certificate['request']['id']}.json"


def write_certificate(root: Path, certificate: Mapping[str, Any]) -> Path:
    """Write both files of a certificate, the JSON last; returns the page's path."""
    path = path_of(root, certificate)
    page = write_page(root, certificate)
    write_json(path, certificate)
    return page


def write_page(root: Path, certificate: Mapping[str, Any]) -> Path:
    """Write a certificate's page."""
    from efface.certificates.page import render_certificate

    page = path_of(root, certificate).with_suffix(".html")
    with writing(page) as partial:
        partial.write_text(render_certificate(certificate), encoding="utf-8")
    return page


@dataclass
class Verification:
    """What holding the certificates against everything they speak of has shown."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""
    certificates: int = 0
    digests: int = 0
    """How many were taken and compared."""


def verify(root: Path) -> Verification:
    """Recompute every digest of every certificate, and the chain; nothing is changed.

    Compared are the certificate's own digest and its link to the one before it, its page, the people's
    hashes, and the files it names: the request, the samples, the mask, the scores, and the models before and
    after.
    """
    found = Verification()
    try:
        certificates, outcomes = read_certificates(root), read_outcomes(root)
        salt = read_salt(project_of(root))
    except (ArtifactError, SaltError) as error:
        found.faults.append(str(error))
        return found
    found.certificates = len(certificates)
    found.faults += chain_faults(certificates)
    known: dict[Path, str | None] = {}
    for certificate in certificates:
        name = certificate["request"]["id"]
        try:
            _check_page(root, certificate, found)
            _check_files(root, certificate, found, known)
            _check_people(certificate, outcomes, salt, found)
        except (KeyError, TypeError) as error:
            found.faults.append(
                f"certificate {name}: something in it is missing or no longer whole ({error})"
            )
    present = {each[DIGEST] for each in certificates}
    for request, outcome in outcomes.items():
        if outcome.certificate is not None and outcome.certificate not in present:
            found.faults.append(
                f"request {request}: its certificate ({outcome.certificate[:12]}) is missing or was changed; "
                "restore it from git"
            )
    if certificates and salt is None:
        found.notes.append(
            f"the people's hashes were not checked: neither {SALT} nor {SALT_VARIABLE} holds the salt"
        )
    return found


def _check_page(root: Path, certificate: Mapping[str, Any], found: Verification) -> None:
    from efface.certificates.page import render_certificate

    page = path_of(root, certificate).with_suffix(".html")
    name = certificate["request"]["id"]
    text = page.read_text(encoding="utf-8") if page.is_file() else None
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of a changed one: its digest tells
        if text == render_certificate(certificate):
            return
    found.faults.append(
        f"certificate {name}: {page} is {'missing' if text is None else 'not what the JSON says'}; write it "
        f"anew with: python -m flows.requests certificate {name}"
    )


def _check_files(
    root: Path, certificate: Mapping[str, Any], found: Verification, known: dict[Path, str | None]
) -> None:
    name = certificate["request"]["id"]
    for role, file in certificate["files"].items():
        path = project_of(root) / file["path"]
        if path not in known:
            known[path] = digest(path) if path.exists() else None
        found.digests += 1
        if known[path] is None:
            found.faults.append(
                f"certificate {name}: {role} is missing at {file['path']}; restore it with git or, in "
                f"{certificate['run']}, with: dvc checkout"
            )
        elif known[path] != file["digest"]:
            found.faults.append(
                f"certificate {name}: {role} was changed: {file['path']} has digest "
                f"{str(known[path])[:12]}, expected {file['digest'][:12]}"
            )


def _check_people(
    certificate: Mapping[str, Any],
    outcomes: Mapping[str, Outcome],
    salt: bytes | None,
    found: Verification,
) -> None:
    name = certificate["request"]["id"]
    outcome = outcomes.get(name)
    if salt is None or outcome is None or outcome.certificate != certificate[DIGEST]:
        return
    hashes = subject_hashes(outcome.subjects, salt)
    found.digests += len(hashes)
    if hashes != certificate["request"]["subjects"]:
        found.faults.append(
            f"certificate {name}: the hashes of its people are not those of data/requests/state/{name}.json; "
            "one of the two was changed, or the salt is another"
        )
