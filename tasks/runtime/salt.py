"""The secret that people's ids are hashed with, in certificates and in models' cards."""

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
    """A secret that is none."""


def salt_of(project: Path, *, create: bool = False) -> bytes | None:
    """The secret: from the environment, or the project's own file; None if there is none.

    Args:
        project: the project's folder.
        create: draw one if there is none; only its owner may read the file.

    Raises:
        SaltError: if it is too short.
    """
    given = os.environ.get(SALT_VARIABLE, "").encode()
    if given:
        return _long_enough(given, SALT_VARIABLE)
    path = project / SALT
    if not path.is_file():
        if not create:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as partial:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as handle:
                handle.write(secrets.token_hex(_SALT_BYTES))
    return _long_enough(path.read_bytes().strip(), str(path))


def _long_enough(salt: bytes, where: str) -> bytes:
    if len(salt) < _SALT_BYTES:
        raise SaltError(
            f"{where} holds {len(salt)} characters: expected at least {_SALT_BYTES}, drawn at random"
        )
    return salt
