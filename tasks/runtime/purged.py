"""People whose data were purged, and who must not return when a benchmark is rebuilt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from efface.subject_hashes import subject_hash
from tasks.runtime.results import project_of
from tasks.runtime.salt import SALT, SALT_VARIABLE, SaltError, read_salt

PURGED = Path("requests") / "purged.txt"
"""Under the data folder: the salted hash of each person, one per line."""


def purge_filter(root: Path) -> Callable[[str], bool]:
    """A function that tells whether an entity id is that of a purged person.

    Raises:
        SaltError: if people were purged and the salt is missing, so that they cannot be recognised.
    """
    path = root / PURGED
    hashes = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    if not hashes:
        return lambda entity_id: False
    salt = read_salt(project_of(root)) or read_salt(Path(os.environ.get("DVC_ROOT", ".")))
    if salt is None:
        raise SaltError(
            f"{path} names {len(hashes)} purged people by salted hashes, and there is no salt to recognise "
            f"them by: restore {SALT} or set {SALT_VARIABLE}; if it was destroyed, remove these people from "
            f"the benchmark's source and empty {path}"
        )
    return lambda entity_id: subject_hash(entity_id, salt) in hashes
