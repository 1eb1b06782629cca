"""RFC 3161 time stamps: a third party's signed statement that a digest existed at a time."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfc3161_client import TimeStampRequest


def stamp_request(content: bytes) -> TimeStampRequest:
    """A request for a stamp of the content's SHA-256, with a nonce; the answer is to hold certificates."""
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    return TimestampRequestBuilder(data=content, hash_algorithm=HashAlgorithm.SHA256).build()


def stamp_time(response: bytes, digest: str, roots: bytes, *, nonce: int | None = None) -> dt.datetime:
    """Time of a stamp, in UTC, after its verification.

    Args:
        response: the server's answer, in DER.
        digest: SHA-256 (hex) that it must stamp.
        roots: the trusted root certificates, in PEM.
        nonce: of the request that it must answer; None: any.

    Raises:
        ValueError: if it is no granted stamp of this digest by a server that a root certifies.
    """
    from cryptography.x509 import load_pem_x509_certificates
    from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

    stamp = decode_timestamp_response(response)
    verifier = VerifierBuilder(roots=load_pem_x509_certificates(roots), nonce=nonce).build()
    try:
        verifier.verify(stamp, bytes.fromhex(digest))
    except VerificationError as error:
        raise ValueError("; ".join([str(error), *stamp.status_string])) from error
    return stamp.tst_info.gen_time.astimezone(dt.UTC)
