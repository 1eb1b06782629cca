"""Shared storage, so that what one machine has made no other makes again: python -m flows.storage pull|push.

``EFFACE_REMOTE`` says where it is: a folder that all machines see, ``s3://bucket/folder``,
``ssh://user@host/folder``, or the name of a remote in ``.dvc/config``. A flow fetches from it before its
stages and shares with it after them; without the variable nothing leaves the machine. Credentials are those
of the service's own tools (AWS's variables and files, SSH's keys): none is written anywhere here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from efface.errors import EffaceError
from tasks.runtime.artifacts import disk_is_full
from tasks.tracking.client import redact

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "EFFACE_REMOTE"
_NAME = "shared"
_PROBE_SECONDS = 5.0
_PORTS = {"ssh": 22, "http": 80, "https": 443, "hdfs": 8020, "webdav": 80, "webdavs": 443}
_PACKAGES = {"s3": "dvc-s3", "ssh": "dvc-ssh", "gs": "dvc-gs", "azure": "dvc-azure", "webdav": "dvc-webdav"}

app = typer.Typer(
    help="Fetch from and share with the storage that EFFACE_REMOTE names (docs/operations.md).",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
Folder = Annotated[str, typer.Option(help="The DVC project, such as that of a run of requests.")]


class StorageError(EffaceError):
    """The shared storage cannot be reached, or does not take or give everything."""


def address() -> str | None:
    """What the environment says about the shared storage; None: there is none."""
    return os.environ.get(REMOTE) or None


def fetch(target: str | None = None, folder: str = ".") -> list[str]:
    """Bring here what other machines have made of the same code, parameters and data.

    A stage is fetched as a whole or not at all; one that nobody has made yet stays for this machine to make.

    Args:
        target: a stage; it and what it needs are fetched. None: all of them.
        folder: the DVC project.

    Returns:
        Names of the stages that were brought up to date.

    Raises:
        StorageError: if the storage cannot be reached or a transfer breaks off.
    """
    from dvc.stage.cache import RunCacheNotSupported

    where = _required()
    with _repository(where, folder) as repo, _failures_in_words(where, "give", folder):
        with contextlib.suppress(RunCacheNotSupported):  # over HTTP only what dvc.lock names is found
            remote = repo.cloud.get_remote_odb(None, "fetch", hash_name="md5-dos2unix")
            repo.stage_cache.transfer(remote, repo.cache.legacy, force=False)
        stale = set(repo.status())
        names = [name for name in _in_order(repo, target) if name in stale or _after(repo, name, stale)]
        return _restore(repo, names) if stale else []


def share(folder: str = ".") -> int:
    """Give to others what is here: data, masks, models, scores, the report, and of what they were made.

    Returns:
        Number of files sent.

    Raises:
        StorageError: if not everything arrived. Nothing here is lost; the next call goes on from there.
    """
    from dvc.stage.cache import RunCacheNotSupported

    where = _required()
    with _repository(where, folder) as repo, _failures_in_words(where, "take", folder):
        sent = int(repo.push())
        with contextlib.suppress(RunCacheNotSupported):  # last, so that what it names is there already
            remote = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
            sent += len(repo.stage_cache.transfer(repo.cache.legacy, remote, force=False))
        return sent


def _restore(repo: Repo, names: list[str]) -> list[str]:
    """Fetch these stages in order, leaving out what needs a stage that is not there."""
    from dvc.exceptions import ConfirmRemoveError
    from dvc.repo import lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    restored: list[str] = []
    unmade: set[str] = set()
    for name in names:
        with lock_repo(repo):
            (stage,) = repo.stage.collect(name)
            needs = {up.addressing for up in repo.index.graph.successors(stage)}
            if needs & unmade:
                unmade.add(name)
                continue
            if not stage.changed():
                continue
            try:
                repo.stage_cache.restore(stage, pull=True)
            except RunCacheNotFoundError:
                unmade.add(name)
                continue
            except ConfirmRemoveError:
                pass  # fetched; what was changed by hand gives way in the next step, as in `dvc repro`
        repo.reproduce([name], single_item=True)  # finds all of it in the cache now, and notes it in dvc.lock
        restored.append(name)
    return restored


def _in_order(repo: Repo, target: str | None) -> list[str]:
    """Stages, each after those it needs; with a target only it and what it needs."""
    import networkx

    graph = repo.index.graph
    wanted = set(graph)
    if target is not None:
        found = [stage for stage in graph if stage.addressing == target]
        if not found:
            names = ", ".join(sorted(stage.addressing for stage in graph))
            raise StorageError(f"no stage {target!r}; expected one of: {names}")
        wanted = {found[0], *networkx.descendants(graph, found[0])}
    ordered = reversed(list(networkx.topological_sort(graph)))
    return [stage.addressing for stage in ordered if stage in wanted]


def _after(repo: Repo, name: str, stale: set[str]) -> bool:
    """Whether a stage needs one of these, directly or not."""
    import networkx

    graph = repo.index.graph
    (stage,) = (stage for stage in graph if stage.addressing == name)
    return any(up.addressing in stale for up in networkx.descendants(graph, stage))


def _required() -> str:
    where = address()
    if where is None:
        raise StorageError(
            f"{REMOTE} is not set, so there is no shared storage; set it to a folder, s3://..., ssh://... or "
            "the name of a remote in .dvc/config"
        )
    return where


@contextlib.contextmanager
def _repository(where: str, folder: str) -> Iterator[Repo]:
    """The project with the shared storage as its remote, for this process alone: no file names it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with Repo(folder) as plain:
            named = where in plain.config["remote"]
            url = str(plain.config["remote"][where]["url"]) if named else where
        _must_answer(url)
        own: dict[str, Any] = {} if named else {"remote": {_NAME: {"url": _absolute(where)}}}
        own["core"] = {"remote": where if named else _NAME}
        with Repo(folder, config=own, _wait_for_lock=True) as repo:
            repo.cloud.get_remote()  # says at once if the address makes no sense or a package is missing
            yield repo
    except (DvcException, ImportError) as error:
        raise _unusable(where, error) from error


def _absolute(where: str) -> str:
    return where if "://" in where else str(Path(where).expanduser().absolute())


def _must_answer(where: str) -> None:
    """Fail within seconds where a transfer would wait for minutes, or write into an unmounted folder."""
    if "://" not in where:
        folder = Path(_absolute(where))
        if not folder.is_dir():
            raise StorageError(
                f"shared storage {folder} is not there; is it mounted? A new one: mkdir -p {folder}"
            )
        return
    parts = urlsplit(os.environ.get("AWS_ENDPOINT_URL", where) if where.startswith("s3:") else where)
    port = parts.port or _PORTS.get(parts.scheme)
    if parts.hostname is None or port is None:  # a service's own name for a place: the transfer will tell
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise StorageError(
            f"shared storage {redact(where)} cannot be reached ({error}); nothing is lost. Try again, "
            f"or go on without it by unsetting {REMOTE}"
        ) from error


@contextlib.contextmanager
def _failures_in_words(where: str, verb: str, folder: str) -> Iterator[None]:
    """Raise what DVC only logs: a file that did not get through, with the first reason."""
    from dvc.exceptions import DownloadError, DvcException, UploadError

    reasons = _Reasons()
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_objects", "dvc_data")]
    for logger in loggers:
        logger.addHandler(reasons)
    try:
        yield
    except (UploadError, DownloadError) as error:
        raise _broken_off(where, verb, folder, reasons.first or error) from error
    except OSError as error:
        raise _broken_off(where, verb, folder, error) from error
    except DvcException as error:
        raise _unusable(where, error) from error
    finally:
        for logger in loggers:
            logger.removeHandler(reasons)
    if reasons.first is not None:
        raise _broken_off(where, verb, folder, reasons.first)


class _Reasons(logging.Handler):
    """Keeps the first error that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self.first is None:
            self.first = error or StorageError(record.getMessage())


def _broken_off(where: str, verb: str, folder: str, error: BaseException) -> StorageError:
    reason = "it is full" if disk_is_full(error) else " ".join(f"{type(error).__name__}: {error}".split())
    again = ("push" if verb == "take" else "pull") + ("" if folder == "." else f" --folder {folder}")
    return StorageError(
        f"shared storage {redact(where)} did not {verb} everything ({redact(reason)[:300]}); nothing here is "
        f"lost, and what got through stays. Go on from there with: python -m flows.storage {again}"
    )


def _unusable(where: str, error: Exception) -> StorageError:
    scheme = where.partition("://")[0]
    hint = f"; install what it needs: pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else ""
    missing = "requires" in str(error) or "supported" in str(error)
    reason = redact(" ".join(str(error).split()))[:300]
    return StorageError(f"shared storage {redact(where)} cannot be used: {reason}{hint if missing else ''}")


@app.command()
def pull(
    target: Annotated[str | None, typer.Option(help="Only this stage of dvc.yaml and what it needs.")] = None,
    folder: Folder = ".",
) -> None:
    """Bring here what other machines have made."""
    with _errors_in_words():
        restored = fetch(target, folder)
        typer.echo(f"pull: {', '.join(restored) or 'nothing new'} from {redact(_required())}")


@app.command()
def push(folder: Folder = ".") -> None:
    """Give to others what is here."""
    with _errors_in_words():
        typer.echo(f"push: {share(folder)} files to {redact(_required())}")


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    try:
        yield
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
