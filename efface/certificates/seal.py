"""Digests of certificates, and the chain they form.

A certificate is a mapping that JSON can hold. Its digest covers all of it, including the digest of the
previous certificate, so changing one without a trace means changing all later ones too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

DIGEST = "digest"
SIGNATURE = "signature"


def content_of(certificate: Mapping[str, Any]) -> bytes:
    """Everything except digest and signature, as JSON with sorted keys and no spaces, in UTF-8.

    Raises:
        ValueError: if a value is NaN or infinite, which JSON cannot hold.
    """
    body = {key: value for key, value in certificate.items() if key not in (DIGEST, SIGNATURE)}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(certificate: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the content.

    Raises:
        ValueError: if a value is NaN or infinite, which JSON cannot hold.
    """
    return hashlib.sha256(content_of(certificate)).hexdigest()


def sealed(body: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """The next certificate of a chain: the body with its number, the previous digest, and its own digest.

    Args:
        body: its content.
        previous: the certificate before it; None for the first.
    """
    link = None if previous is None else {"id": previous["request"]["id"], DIGEST: previous[DIGEST]}
    number = 1 if previous is None else int(previous["number"]) + 1
    certificate = {**body, "number": number, "previous": link}
    return {**certificate, DIGEST: digest_of(certificate)}


def chain_faults(certificates: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the chain of certificates, one line per fault.

    Args:
        certificates: all certificates, in any order. Missing ones at the end cannot be detected.
    """
    faults = []
    previous: Mapping[str, Any] | None = None
    for certificate in sorted(certificates, key=lambda certificate: int(certificate["number"])):
        name = certificate["request"]["id"]
        if digest_of(certificate) != certificate[DIGEST]:
            faults.append(f"certificate {name}: its content does not match its digest; it was changed")
        number = 1 if previous is None else int(previous["number"]) + 1
        if int(certificate["number"]) != number:
            faults.append(
                f"certificate {name} is number {certificate['number']}, expected {number}: one before it is "
                "missing or exists twice"
            )
        link = None if previous is None else {"id": previous["request"]["id"], DIGEST: previous[DIGEST]}
        if certificate["previous"] != link:
            faults.append(
                f"certificate {name} follows {_short(certificate['previous'])}, expected {_short(link)}: the "
                "chain is broken"
            )
        previous = certificate
    return faults


def _short(link: Mapping[str, Any] | None) -> str:
    return "none" if link is None else f"{link['id']} ({str(link[DIGEST])[:12]})"
