"""A project's objects in DVC's cache and remotes, and their deletion by hash.

`dvc gc` deletes everything that a workspace does not use, including other projects' objects in a remote. Here
only objects are deleted that this project's lock files and run caches name; in a cache inside the project,
which belongs to it alone, all others too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError

if TYPE_CHECKING:
    from dvc.repo import Repo

_HASH = re.compile(r"md5: ([0-9a-f]{32}(?:\.dir)?)\b")
_OUR_STAGE = "python -m tasks"


class StorageError(EffaceError):
    """DVC's cache or a remote cannot be reached."""


@dataclass(frozen=True)
class _Store:
    """DVC's cache, or a remote: objects by hash, and a run cache."""

    name: str
    odb: Any
    runs: str
    private: bool
    """Whether it is in the project's own folder, so that everything in it belongs to the project."""

    def run_entries(self) -> list[str]:
        """Entries of the run cache that this project's stages may have written."""
        fs = self.odb.fs
        files = list(fs.find(self.runs)) if fs.exists(self.runs) else []
        return [file for file in files if self.private or _OUR_STAGE in fs.read_text(file)]

    def objects(self) -> list[str]:
        """Hashes of all objects."""
        return list(self.odb.all()) if self.odb.fs.exists(self.odb.path) else []

    def files_of(self, hashes: Collection[str]) -> set[str]:
        """Hashes of the files in these folders, as far as their listings are available."""
        paths = [self.odb.oid_to_path(value) for value in hashes if value.endswith(".dir")]
        listings = (json.loads(self.odb.fs.read_text(path)) for path in paths if self.odb.fs.exists(path))
        return {entry["md5"] for listing in listings for entry in listing}


def stored_objects(project: Path, *, keep: Collection[str]) -> dict[str, dict[str, Any]]:
    """The project's objects by store: `objects` and `run_cache` to delete, and the number of `others`.

    Args:
        project: the project folder.
        keep: hashes of outputs to keep, as in dvc.lock.

    Raises:
        StorageError: if a remote cannot be reached.
    """
    with _stores(project) as stores:
        texts = [path.read_text(encoding="utf-8") for path in _lock_files(project)]
        entries = {store.name: store.run_entries() for store in stores}
        texts += [store.odb.fs.read_text(file) for store in stores for file in entries[store.name]]
        named = {value for text in texts for value in _HASH.findall(text)}
        retained = set(keep)
        for store in stores:
            named |= store.files_of(named)
            retained |= store.files_of(retained)
        result = {}
        for store in stores:
            objects = set(store.objects())
            delete = (objects if store.private else objects & named) - retained
            result[store.name] = {
                "objects": sorted(delete),
                "run_cache": len(entries[store.name]),
                "others": len(objects - delete - retained),
            }
        return result


def delete_objects(project: Path, objects: Mapping[str, Mapping[str, Any]]) -> None:
    """Delete objects that `stored_objects` listed; missing ones are not an error.

    Raises:
        StorageError: if a remote cannot be reached.
    """
    from dvc_data.hashfile.db import get_index

    with _stores(project) as stores:
        for store in stores:
            fs = store.odb.fs
            for path in (store.odb.oid_to_path(value) for value in objects[store.name]["objects"]):
                if fs.exists(path):
                    fs.remove(path)
            for entry in store.run_entries():
                fs.remove(entry)
                if fs.protocol == "local":  # DVC fails on the empty folder of a deleted entry
                    with contextlib.suppress(OSError):
                        os.removedirs(os.path.dirname(entry))
            get_index(store.odb).clear()  # or the next push would assume that they exist


def _lock_files(project: Path) -> list[Path]:
    folders = (project, project / ".requests", project / ".study")
    return [path for folder in folders for path in (*folder.glob("dvc.lock"), *folder.glob("*/dvc.lock"))]


@contextlib.contextmanager
def _stores(project: Path) -> Iterator[list[_Store]]:
    """The cache and all remotes of the project, locked against other DVC commands."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.errors import ObjectDBError

    try:
        with Repo(str(project)) as repo, repo.lock:
            cache = repo.cache.local
            private = Path(cache.path).resolve().is_relative_to(project.resolve())
            name = "DVC cache" if private else f"DVC cache {cache.path}"
            stores = [_Store(name, cache, repo.stage_cache.cache_dir, private)]
            stores += [_remote(repo, name) for name in repo.config["remote"]]
            yield stores
    except (DvcException, ObjectDBError, OSError) as error:
        raise StorageError(
            f"DVC's storage does not answer ({type(error).__name__}: {' '.join(str(error).split())}); "
            "nothing is lost: connect it, or remove it with dvc remote remove if it no longer exists, "
            "and run again"
        ) from error


def _remote(repo: Repo, name: str) -> _Store:
    remote = repo.cloud.get_remote(name)
    if not remote.fs.exists(remote.path):  # an unmounted share looks like an empty one
        raise OSError(f"remote {name}: {remote.path} does not exist")
    return _Store(f"DVC remote {name}", remote.odb, remote.fs.join(remote.path, "runs"), private=False)
