"""The way to MLflow: where it is, whether it answers, one sender at a time, and failures in words."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from efface.errors import EffaceError
from tasks.runtime.artifacts import remove_stale_partials
from tasks.tracking.addresses import shown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_PROBE_SECONDS = 3.0
_LOCK_SECONDS = 60.0


class TrackingError(EffaceError):
    """The tracking server or database did not take the results; they are still on disk."""


def address_of(project: Path) -> str:
    """Where this project tracks: ``MLFLOW_TRACKING_URI``, else a database in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"


@contextlib.contextmanager
def connected(project: Path) -> Iterator[MlflowClient]:
    """A client of the project's MLflow, for one sender at a time.

    Args:
        project: absolute; its database is made if that is where it tracks.

    Raises:
        TrackingError: in one line, whatever the store can throw inside the block.
    """
    uri = address_of(project)
    with _alone(project / "mlartifacts" / ".lock"), _failures_in_words(uri):
        from mlflow.tracking import MlflowClient

        database = project / "mlflow.db"
        if uri == f"sqlite:///{database}" and not database.exists():
            _create_database(database)
        yield MlflowClient(uri, uri)


@contextlib.contextmanager
def _failures_in_words(uri: str) -> Iterator[None]:
    """Turn whatever a store can throw into one line that says how to go on."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        _probe(uri)
        from mlflow.exceptions import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError
    except OSError as error:
        raise _unsent(uri, error) from error
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise _unsent(uri, error) from error


def _unsent(uri: str, error: Exception) -> TrackingError:
    reason = shown(" ".join(str(error).split()))
    reason = reason if len(reason) <= 160 else reason[:157] + "..."
    return TrackingError(
        f"MLflow at {shown(uri)} did not take the results ({type(error).__name__}: {reason}); "
        "nothing is lost, send them later with: python -m tasks track"
    )


def _probe(uri: str) -> None:
    """Fail within seconds where MLflow would wait for minutes: a host where nobody answers."""
    parts = urlsplit(uri)
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
    port = parts.port or ports.get(parts.scheme.partition("+")[0])
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a kernel lock, gone with its process: two senders would each make the same runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _LOCK_SECONDS
    with open(path, "w", encoding="utf-8") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TrackingError(
                        f"another process has been tracking for {_LOCK_SECONDS:.0f} seconds (lock {path}); "
                        "run again when it is done: python -m tasks track"
                    ) from None
                time.sleep(0.1)
        yield


def _create_database(path: Path) -> None:
    """Make the SQLite file whole or not at all: a schema cut short by a kill cannot be repaired."""
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial tables..."
    remove_stale_partials(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    MlflowClient(f"sqlite:///{partial}", f"sqlite:///{partial}").search_experiments(max_results=1)
    os.replace(partial, path)
