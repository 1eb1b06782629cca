"""Atomic writing of files, digests, and the record of a run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from efface.errors import ArtifactError
from tasks.runtime.sharing import is_first

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A sibling to write to, which replaces `path` once everything is written.

    The caller creates the yielded path as a file or a folder. It replaces `path` if the block succeeds and is
    removed otherwise; leftovers of killed processes are removed first. So a reader of `path` sees the old
    content, the new content or nothing, never a part.

    Raises:
        ArtifactError: if the block ended without creating the yielded path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_partials(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove(partial)
    try:
        yield partial
        if not partial.exists():
            raise ArtifactError(
                f"nothing was written for {path}: expected a file or folder at {partial.name}"
            )
        _flush(partial)
        _replace(partial, path)
    finally:
        _remove(partial)


def remove_stale_partials(path: Path) -> None:
    """Remove the unfinished siblings of `path` whose process has ended."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?:partial|old)-(\d+)")
    for sibling in path.parent.iterdir() if path.parent.is_dir() else ():
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])):
            _remove(sibling)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(partial: Path, path: Path) -> None:
    if not (path.is_dir() or partial.is_dir()):
        os.replace(partial, path)
        return
    # A folder that is not empty cannot be replaced by renaming: the old one is moved aside first.
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    _remove(old)
    if path.exists() or path.is_symlink():
        os.rename(path, old)
    os.rename(partial, path)
    _remove(old)


def _flush(path: Path) -> None:
    """Flush content to disk before the rename, so that a power cut cannot leave empty files at `path`."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full, or a quota or file size limit is reached."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # safetensors, which writes from Rust, and shutil's copy of a folder have the number only in their texts.
    number = re.search(r"(?:\(os error |\[Errno )(\d+)[)\]]", str(error))
    return number is not None and int(number[1]) in _FULL


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a folder's relative names and contents in sorted order.

    Raises:
        ArtifactError: if `path` does not exist.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist; make or restore it with: dvc repro")
    total = hashlib.sha256()
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically: sorted keys, two spaces, a final newline.

    Raises:
        ArtifactError: if it holds NaN or infinity, which JSON cannot express.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ArtifactError(
            f"cannot write {path}: expected finite numbers ({error}); use null for no value"
        ) from error
    with writing(Path(path)) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ArtifactError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; make or restore it with: dvc repro") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is damaged: expected JSON ({error}); restore it with: dvc repro"
        ) from error


@dataclass
class RunRecord:
    """A stage's record of its run, which `recording` writes if the stage succeeds."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Name to digest of the files read."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Name to digest of the files written."""
    history: Sequence[Mapping[str, float | int | None]] = ()
    """One row per step: step, forget_loss, retain_loss, learning_rate, grad_norm."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Final numbers."""


@contextlib.contextmanager
def recording(
    stage: str,
    section: Any,
    *,
    root: Path = Path("data"),
    name: str | None = None,
    seed: int | None = None,
    inputs: Mapping[str, Path] | None = None,
    outputs: Mapping[str, Path] | None = None,
) -> Iterator[RunRecord]:
    """Record a stage's run as `<root>/runs/<stage>[@<name>].json`.

    Args:
        stage: name of the stage.
        section: its parameters (a pydantic model or plain values).
        root: the data folder.
        name: method or model of a stage that runs once per method or model.
        seed: the seed the stage drew from.
        inputs: files and folders read; their digests are computed at the start.
        outputs: files and folders written; their digests are computed at the end.

    Raises:
        ArtifactError: if an input is missing, or differs from the record of the stage that wrote it.
    """
    if not is_first():  # only one of the processes that share a stage writes
        yield RunRecord()
        return
    started, clock = time.time(), time.perf_counter()
    digests = {key: digest(path) for key, path in (inputs or {}).items()}
    _check_recorded(Path(root), inputs or {}, digests)
    record = RunRecord(inputs=digests)
    yield record
    record.outputs.update({key: digest(path) for key, path in (outputs or {}).items()})
    path = Path(root) / "runs" / (f"{stage}@{name}.json" if name else f"{stage}.json")
    write_json(
        path,
        {
            "stage": stage,
            "name": name,
            "params": section.model_dump(mode="json") if hasattr(section, "model_dump") else section,
            "seed": seed,
            "inputs": record.inputs,
            "outputs": record.outputs,
            "paths": {key: os.path.relpath(path, root) for key, path in (outputs or {}).items()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.perf_counter() - clock, 3),
            **_circumstances(),
            "history": list(record.history),
            "summary": record.summary,
        },
    )


def _check_recorded(root: Path, inputs: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Compare inputs with the records of the stages that wrote them.

    Raises:
        ArtifactError: if one differs, such as a file damaged in a cache or in transfer.
    """
    read = {os.path.relpath(path, root): digests[key] for key, path in inputs.items()}
    for file in sorted((root / "runs").glob("*.json")):
        content = read_json(file)
        for key, path in content.get("paths", {}).items():
            recorded = content["outputs"].get(key)
            if recorded is not None and read.get(path, recorded) != recorded:
                raise ArtifactError(
                    f"{root / path} has sha256 {read[path][:12]}, and {file} recorded {recorded[:12]}: "
                    + _mismatch(root, root / path, file)
                )


def _mismatch(root: Path, path: Path, record: Path) -> str:
    """Whether the file or its record is wrong, as far as dvc.lock tells, and what to do."""
    lock = root.absolute().parent / "dvc.lock"
    digest_of_record = hashlib.md5(record.read_bytes(), usedforsecurity=False).hexdigest()
    again = f"or rebuild it with: dvc repro --force {record.stem}"
    if lock.is_file() and digest_of_record not in lock.read_text(encoding="utf-8"):
        return (
            f"the record is not the one in dvc.lock, as after pulling {path.name} alone; fetch the record of "
            f"the same run with: dvc pull --force {record}, {again}"
        )
    return f"{path} is damaged or from another run; restore both with: dvc checkout --force, {again}"


def _circumstances() -> dict[str, Any]:
    """Machine, commit and versions; torch's only if the stage has loaded it."""
    import resource
    import sys
    from importlib import metadata

    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    names = ("torch", "transformers", "tokenizers", "numpy", "pillow", "safetensors")
    return {
        "device": torch.cuda.get_device_name() if torch is not None and cuda else "cpu",
        "threads": torch.get_num_threads() if torch is not None else None,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "git_commit": _git_commit(),
        "versions": {
            name: metadata.version(name) for name in names if name in sys.modules or name == "pillow"
        },
    }


def _git_commit() -> str | None:
    import subprocess

    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # without git the record is still useful
        return None
    return completed.stdout.strip() or None
