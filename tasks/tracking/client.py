"""The MLflow client: where it connects to, errors in one line, and redaction of secrets."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from efface.errors import EffaceError
from tasks.runtime.artifacts import disk_is_full, writing

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REDACTED = "***"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 3.0
_LOCK_SECONDS = 60.0
_REASON_CHARACTERS = 600
_LOGIN = re.compile(r"(?<=//)[^/\s'\"]+@")
_SECRET_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|secret|token|signature|credential|api_?key)[\w.-]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|KEY|SALT|CREDENTIALS?|AUTH)(?:_|$)")
_LOCATION_VARIABLE = re.compile(r"_(?:FILE|PATH|DIR|URL|URI)$")  # the location of a secret, not the secret
_SHORTEST_SECRET = 6  # shorter values are settings; replacing them would garble every text


class TrackingError(EffaceError):
    """MLflow cannot be reached, refuses a call, or lacks what it should hold."""


def tracking_uri(project: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or else the SQLite database in the project folder.

    Raises:
        TrackingError: if the project's path cannot be part of a database address.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if "?" in str(project):
        raise TrackingError(
            f"{project}: a database address cannot hold the character '?'; rename the folder, or set "
            "MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{project / 'mlflow.db'}"


@contextlib.contextmanager
def mlflow_client(project: Path) -> Iterator[MlflowClient]:
    """A client of the project's MLflow; the project's own database is created if it does not exist.

    Args:
        project: absolute path of the project folder.

    Raises:
        TrackingError: for every error of MLflow, its database or the connection inside the block.
    """
    uri = tracking_uri(project)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:  # MLflow itself would retry for minutes
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        from mlflow.exceptions import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError
    except OSError as error:
        raise _unavailable(uri, error) from error
    try:
        from mlflow.tracking import MlflowClient

        if uri == f"sqlite:///{project / 'mlflow.db'}":
            create_database(project / "mlflow.db")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs pages, and raises too
        yield MlflowClient(uri, uri)
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise _unavailable(uri, error) from error


def _unavailable(uri: str, error: Exception) -> TrackingError:
    reason = " ".join(str(error).partition("\n[SQL")[0].replace("<database_uri>", uri).split())
    full = disk_is_full(error) or "disk is full" in reason  # SQLite's words
    remedy = "make room" if full else "start it or correct MLFLOW_TRACKING_URI"
    return TrackingError(
        f"MLflow at {redact(uri)} does not answer as expected ({type(error).__name__}: "
        f"{redact(reason)[:_REASON_CHARACTERS]}); nothing is lost: {remedy}, "
        "then run the same command again or, for the results of a pipeline, python -m tasks track"
    )


@contextlib.contextmanager
def tracking_lock(project: Path) -> Iterator[None]:
    """Let one process at a time send results: two would create every run twice.

    Raises:
        TrackingError: if another process holds the lock for a minute.
    """
    from filelock import FileLock, Timeout

    path = project / ".efface" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=_LOCK_SECONDS, is_singleton=True):
            yield
    except Timeout:
        raise TrackingError(
            f"{path} has been locked for {_LOCK_SECONDS:.0f} seconds by another process that sends results "
            "to MLflow; run again when it has ended: python -m tasks track"
        ) from None


def create_database(path: Path) -> None:
    """Create MLflow's SQLite file unless it exists; a process killed meanwhile leaves none behind."""
    from mlflow.tracking import MlflowClient

    if path.exists():
        return
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial tables..."
    with tracking_lock(path.parent):
        if not path.exists():
            with writing(path) as partial:
                uri = f"sqlite:///{partial}"
                MlflowClient(uri, uri).search_experiments(max_results=1)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace the secrets in a text by ``***``.

    Secrets are logins in URLs (``//user:password@``), URL parameters with a name such as ``token=``, and the
    values of environment variables with a name such as ``MLFLOW_TRACKING_PASSWORD``, as well as the passwords
    of addresses in the environment.

    Args:
        text: a message, a tag, an address.
        environment: where secrets come from.
    """
    secrets = set()
    for name, value in environment.items():
        if _SECRET_VARIABLE.search(name.upper()) and not _LOCATION_VARIABLE.search(name.upper()):
            secrets.add(value)
        elif "://" in value and "@" in value:
            with contextlib.suppress(ValueError):  # not a URL after all
                password = urlsplit(value).password or ""
                secrets |= {password, unquote(password)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    return _SECRET_PARAMETER.sub(rf"\1{REDACTED}", _LOGIN.sub(f"{REDACTED}@", text))
