"""RFC 3161 time stamps beside the certificates, from the server that `requests.timestamp_server` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.certificates.seal import DIGEST, content_of
from efface.errors import ArtifactError
from tasks.config import Params
from tasks.requests.certificates import (
    TIMESTAMP_ROOTS,
    certificate_folder,
    certificate_path,
    read_certificates,
    stamp_path,
    write_page,
)
from tasks.requests.intake import RequestError
from tasks.runtime.artifacts import writing
from tasks.tracking.client import redact

_SECONDS = 20.0


def check_timestamps(params: Params, root: Path) -> None:
    """Check that stamps can be verified, if a server is configured; asks it nothing.

    Raises:
        RequestError: if the package or the root certificates are missing.
    """
    if params.requests.timestamp_server is None:
        return
    from importlib.util import find_spec

    if find_spec("rfc3161_client") is None:
        raise RequestError(
            "requests.timestamp_server is set, and rfc3161-client is not installed: pip install "
            "-c constraints.txt -e '.[timestamps]'"
        )
    from cryptography.x509 import load_pem_x509_certificates

    path = certificate_folder(root) / TIMESTAMP_ROOTS
    try:
        load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(
            f"requests.timestamp_server is set, and {path} is not the PEM file with the server's root "
            f"certificates ({error}): put it there, or set timestamp_server to null"
        ) from error


def add_stamps(params: Params, root: Path) -> list[str]:
    """Stamp the certificates and purge records without a stamp; returns a line for what has none then.

    Nothing is lost if the server does not answer: the next call continues.

    Raises:
        RequestError: as `check_timestamps`.
    """
    check_timestamps(params, root)
    if params.requests.timestamp_server is None:
        return []
    missing = [item for item in read_certificates(root) if not stamp_path(root, item).is_file()]
    while missing:
        try:
            _stamp(params.requests.timestamp_server, root, missing[0])
        except ArtifactError as error:
            names = ", ".join(certificate_path(root, item).stem for item in missing)
            return [f"note: no time stamp for {names}: {error}; add it with: python -m flows.requests stamp"]
        missing.pop(0)
    return []


def _stamp(server: str, root: Path, certificate: Mapping[str, Any]) -> None:
    """Write the stamp and the page, which names it.

    Raises:
        ArtifactError: if the server does not give a valid stamp.
    """
    import httpx

    from efface.certificates.timestamp import stamp_request, stamp_time

    request = stamp_request(content_of(certificate))
    try:
        response = httpx.post(
            server,
            content=request.as_bytes(),
            headers={"Content-Type": "application/timestamp-query"},
            timeout=_SECONDS,
        ).raise_for_status()
        roots = (certificate_folder(root) / TIMESTAMP_ROOTS).read_bytes()
        stamp_time(response.content, certificate[DIGEST], roots, nonce=request.nonce)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ArtifactError(
            f"{redact(server)} gave no valid one ({type(error).__name__}: {redact(str(error))})"
        ) from error
    with writing(stamp_path(root, certificate)) as partial:
        partial.write_bytes(response.content)
        write_page(root, certificate, stamped=True)  # first: without the stamp, the next call writes both
