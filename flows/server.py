"""Checking that the Prefect server of PREFECT_API_URL answers, or that a temporary one can start."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import httpx
import prefect
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from efface.errors import EffaceError
from tasks.tracking.client import redact


class ServerError(EffaceError):
    """Prefect's server does not answer, or cannot start."""


def require_server() -> None:
    """Check the server within seconds; without PREFECT_API_URL, flows start a temporary one.

    Raises:
        ServerError: if nothing answers at the address, or the temporary server cannot read its database.
    """
    address = PREFECT_API_URL.value()
    if address is None:
        _check_database(PREFECT_HOME.value() / "prefect.db")
        return
    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=5.0)  # any status will do: it may ask for a login
    except httpx.HTTPError as error:
        raise ServerError(
            f"PREFECT_API_URL is {redact(address)}: no Prefect server answers there "
            f"({redact(str(error)) or type(error).__name__}); start it (make server), or unset the variable "
            "to run without one"
        ) from error


def _check_database(database: Path) -> None:
    """Check that this Prefect can read the temporary server's database, before it takes minutes to fail."""
    if not database.is_file():
        return
    remedy = f"delete {database}*: nothing in it is needed"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        ) as tables:
            revisions = [str(row[0]) for row in tables.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.OperationalError:  # in use, or not yet filled
        return
    except sqlite3.DatabaseError as error:
        raise ServerError(f"{database} is damaged ({error}); {remedy}") from error
    migrations = Path(prefect.__file__).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
    names = [file.name for file in migrations.glob("*.py")]
    for revision in revisions:
        if names and not any(revision in name for name in names):
            raise ServerError(
                f"{database} was written by another version of Prefect than {prefect.__version__} "
                f"(revision {revision}); {remedy}"
            )
