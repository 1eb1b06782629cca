"""The secret salt: the key of the hashes of people in certificates and model cards."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from efface.errors import EffaceError
from tasks.runtime.artifacts import writing

SALT = Path(".efface") / "requests.salt"
SALT_VARIABLE = "EFFACE_REQUESTS_SALT"
_SALT_BYTES = 32


class SaltError(EffaceError):
    """A salt that is too short to be a secret."""


def read_salt(project: Path) -> bytes | None:
    """The salt, from the environment or the project's own file; None if neither holds one.

    Raises:
        SaltError: if it is too short.
    """
    salt, origin = os.environ.get(SALT_VARIABLE, "").encode(), SALT_VARIABLE
    if not salt:
        if not (project / SALT).is_file():
            return None
        salt, origin = (project / SALT).read_bytes().strip(), str(project / SALT)
    if len(salt) < _SALT_BYTES:
        raise SaltError(f"{origin} holds {len(salt)} characters: expected at least {_SALT_BYTES} random ones")
    return salt


def create_salt(project: Path) -> bytes:
    """The salt; if there is none, it is drawn and written to a file that only its owner may read.

    Raises:
        SaltError: if it is too short.
    """
    salt = read_salt(project)
    if salt is None:
        salt = secrets.token_hex(_SALT_BYTES).encode()
        with writing(project / SALT) as partial:
            partial.touch(mode=0o600)
            partial.write_bytes(salt)
    return salt
