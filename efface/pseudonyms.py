"""What stands for a person where nobody is to read who they are: the one place where ids are hashed.

With a key it is an HMAC: without the key nobody can try ids until one fits. Without a key it is a plain hash,
which keeps ids out of sight and no more: whoever can guess an id can hash it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

_KEY_BYTES = 16
_PLAIN_DIGITS = 16


def pseudonym(entity_id: str, key: bytes) -> str:
    """HMAC-SHA256 (hex) of a person's id.

    Raises:
        ValueError: if the key is shorter than 16 bytes.
    """
    if len(key) < _KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes: expected at least {_KEY_BYTES}, drawn at random")
    return hmac.new(key, entity_id.encode(), hashlib.sha256).hexdigest()


def pseudonyms(people: Iterable[str], key: bytes | None) -> list[str]:
    """One for each distinct id, sorted, so that they tell no order.

    Args:
        people: ids.
        key: of the keyed hash; None: the first 16 hex digits of the plain SHA-256.
    """
    if key is None:
        plain = (hashlib.sha256(person.encode()).hexdigest()[:_PLAIN_DIGITS] for person in set(people))
        return sorted(plain)
    return sorted(pseudonym(person, key) for person in set(people))
