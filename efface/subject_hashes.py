"""Hashes that represent people in certificates and model cards.

With a key, a hash is an HMAC, which cannot be checked against guessed ids without the key. Without a key it
is a plain hash: it hides an id from a reader, but whoever guesses the id can compute it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

_KEY_BYTES = 16
_PLAIN_DIGITS = 16


def subject_hash(entity_id: str, key: bytes) -> str:
    """HMAC-SHA256 (hex) of a person's id.

    Raises:
        ValueError: if the key is shorter than 16 bytes.
    """
    if len(key) < _KEY_BYTES:
        raise ValueError(f"key has {len(key)} bytes: expected at least {_KEY_BYTES} random bytes")
    return hmac.new(key, entity_id.encode(), hashlib.sha256).hexdigest()


def subject_hashes(subjects: Iterable[str], key: bytes | None) -> list[str]:
    """The hash of each distinct id, sorted, so that the order of the ids is not disclosed.

    Args:
        subjects: entity ids.
        key: key of the HMAC; None: use the first 16 hex digits of the plain SHA-256.
    """
    if key is not None:
        return sorted(subject_hash(subject, key) for subject in set(subjects))
    return sorted(hashlib.sha256(subject.encode()).hexdigest()[:_PLAIN_DIGITS] for subject in set(subjects))
