"""Copying a benchmark's files from this machine or the Hugging Face Hub, checked and indexed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from efface.errors import DataError

SCHEME = "hf://"
_URL = re.compile(r"hf://(?P<datasets>datasets/)?(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Root:
    """A root that is on this machine."""

    path: Path
    """Folder, or a single table."""
    commit: str | None
    """Commit on the Hub that it was downloaded from."""
    pinned: bool
    """Whether the source names that commit, so that every download gets the same files."""


def fetch(source: str, patterns: Sequence[str]) -> Root:
    """The root at a source, downloaded if necessary.

    Downloads show their progress, go to the cache of `huggingface_hub` (`HF_HOME`), and resume an
    interrupted one.

    Args:
        source: a folder or file; or hf://datasets/OWNER/NAME@REVISION for a dataset of the Hub,
            hf://OWNER/NAME@REVISION for a model repository.
        patterns: which files of a repository to download.

    Raises:
        DataError: if the source does not exist or cannot be downloaded.
    """
    if source.startswith(SCHEME):
        return _download(source, patterns)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"{path} does not exist: expected the folder of a benchmark as downloaded, or "
            "hf://datasets/OWNER/NAME@COMMIT; correct the root"
        )
    return Root(path, None, pinned=False)


def _download(source: str, patterns: Sequence[str]) -> Root:
    from huggingface_hub import snapshot_download

    # HTTPError, of the Hub's HTTP library, is raised when a connection breaks.
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    match = _URL.fullmatch(source)
    if match is None:
        raise DataError(
            f"{source} is no address of the Hub: expected hf://datasets/OWNER/NAME@REVISION, or "
            "hf://OWNER/NAME@REVISION for a model repository; the revision is a commit, which always gives "
            "the same files, or a branch such as main"
        )
    kind = "dataset" if match["datasets"] else "model"
    try:
        folder = snapshot_download(
            match["id"], repo_type=kind, revision=match["revision"], allow_patterns=list(patterns)
        )
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        by_hand = f"hf download {match['id']} --repo-type {kind} --revision {match['revision']}"
        raise DataError(
            f"{source} cannot be downloaded ({reason}); run again when the Hub can be reached, or download "
            f"it elsewhere (`{by_hand} --local-dir FOLDER`) and set the root to that folder"
        ) from error
    return Root(Path(folder), Path(folder).name, pinned=_COMMIT.fullmatch(match["revision"]) is not None)


def import_benchmark(
    name: str,
    sources: Mapping[str, str],
    patterns: Sequence[str],
    files_to_import: Callable[[str, Path], list[Path]],
    target: Path,
) -> dict[str, Any]:
    """Copy the files of every root to `target/<role>` and write `target/index.json`.

    Args:
        name: benchmark name.
        sources: role to folder, table or address of the Hub.
        patterns: which files of a repository to download.
        files_to_import: returns the files to read, given a role and its folder or table; raises DataError if
            the root is not what it should be.
        target: folder to write.

    Returns:
        The index: source and commit of each root, and size and SHA-256 of each file.

    Raises:
        DataError: if a root is missing, cannot be downloaded, or is not what it should be.
    """
    roots = {role: fetch(source, patterns) for role, source in sources.items()}
    files = {
        role: files_to_import(role, root.path) for role, root in roots.items()
    }  # before anything is copied
    index: dict[str, Any] = {"benchmark": name, "roots": {}}
    total = sum(file.stat().st_size for paths in files.values() for file in paths)
    with tqdm(total=total, desc=f"import {name}", unit="B", unit_scale=True, mininterval=0.5) as progress:
        for role, root in roots.items():
            base = root.path if root.path.is_dir() else root.path.parent
            entries: dict[str, Any] = {}
            for file in files[role]:
                path = file.relative_to(base).as_posix()
                copy = target / role / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)  # of a link, what it points to
                with copy.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                entries[path] = {"bytes": copy.stat().st_size, "sha256": sha256}
                progress.update(entries[path]["bytes"])
            index["roots"][role] = {
                "source": sources[role],
                "commit": root.commit,
                "pinned": root.pinned,
                "files": entries,
            }
    text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False)
    (target / "index.json").write_text(text + "\n", encoding="utf-8")
    return index
