"""Where the root of an imported benchmark lies: here, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Commit of the Hub it was downloaded from."""
    pinned: bool
    """Whether the source itself names that commit, so that the same files come every time."""


def fetch(source: str, patterns: Sequence[str]) -> Root:
    """The root at a source, downloaded if need be.

    Downloads show their progress, go to the cache of `huggingface_hub` (`HF_HOME`), and go on where an
    earlier one was interrupted.

    Args:
        source: a folder or file; or hf://datasets/OWNER/NAME@REVISION for a dataset of the Hub,
            hf://OWNER/NAME@REVISION for a model repository.
        patterns: which files of a repository to download.

    Raises:
        DataError: if the source is not there or cannot be downloaded.
    """
    if source.startswith(SCHEME):
        return _download(source, patterns)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"{path} does not exist: expected the folder of a benchmark as downloaded, or "
            "hf://datasets/OWNER/NAME@COMMIT; correct benchmark.roots"
        )
    return Root(path, None, pinned=False)


def _download(source: str, patterns: Sequence[str]) -> Root:
    from httpx2 import HTTPError  # raised when a connection breaks; the base of the Hub's own errors
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    match = _URL.fullmatch(source)
    if match is None:
        raise DataError(
            f"{source} is no address of the Hub: expected hf://datasets/OWNER/NAME@REVISION, or "
            "hf://OWNER/NAME@REVISION for a model repository; the revision is a commit, so that the same "
            "files come every time, or a branch such as main"
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
