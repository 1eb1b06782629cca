"""Bring a benchmark into the project: the files that matter of each root, checked, copied and indexed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from efface.data.benchmarks.hub import Root, fetch

_CHUNK = 1 << 20


class Layout(Protocol):
    """What a benchmark's layout module offers."""

    PATTERNS: tuple[str, ...]

    def files_to_import(self, role: str, root: Path) -> list[Path]:
        """The files of a root that its reader reads; DataError if the root is not what it should be."""
        ...


def import_benchmark(
    name: str, roles: Sequence[str], sources: Mapping[str, str], layout: Layout, target: Path
) -> dict[str, Any]:
    """Copy every root to `target/<role>` and write `target/index.json`.

    Args:
        name: benchmark name.
        roles: the roots it has.
        sources: role to folder, table or address of the Hub.
        layout: knows which files of a root matter.
        target: folder to write.

    Returns:
        The index: of each root its source, the commit it came from, and size and SHA-256 of each file.

    Raises:
        DataError: if a root is not there, cannot be downloaded, or is not what it should be.
    """
    roots = {role: fetch(sources[role], layout.PATTERNS) for role in roles}
    files = {role: layout.files_to_import(role, root.path) for role, root in roots.items()}  # before copying
    index: dict[str, Any] = {"benchmark": name, "roots": {}}
    total = sum(file.stat().st_size for found in files.values() for file in found)
    with tqdm(total=total, desc=f"import {name}", unit="B", unit_scale=True, mininterval=0.5) as progress:
        for role, root in roots.items():
            entries = {}
            for file in files[role]:
                inside = file.relative_to(_base(root)).as_posix()
                entries[inside] = _copy(file, target / role / inside, progress)
            index["roots"][role] = {
                "source": sources[role],
                "commit": root.commit,
                "pinned": root.pinned,
                "files": entries,
            }
    text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False)
    (target / "index.json").write_text(text + "\n", encoding="utf-8")
    return index


def _base(root: Root) -> Path:
    return root.path if root.path.is_dir() else root.path.parent


def _copy(source: Path, target: Path, progress: tqdm) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    total, size = hashlib.sha256(), 0
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(_CHUNK):
            total.update(chunk)
            written.write(chunk)
            size += len(chunk)
            progress.update(len(chunk))
    return {"bytes": size, "sha256": total.hexdigest()}
