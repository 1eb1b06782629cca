"""Checking that the Prefect server of PREFECT_API_URL answers."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_URL

from efface.errors import EffaceError
from tasks.tracking.client import redact


class ServerError(EffaceError):
    """Prefect's server does not answer."""


def require_server() -> None:
    """Check the server within seconds; without PREFECT_API_URL, flows start a temporary one.

    Raises:
        ServerError: if nothing answers at the address.
    """
    address = PREFECT_API_URL.value()
    if address is None:
        return
    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=5.0)  # any status will do: it may ask for a login
    except httpx.HTTPError as error:
        raise ServerError(
            f"PREFECT_API_URL is {redact(address)}: no Prefect server answers there "
            f"({redact(str(error)) or type(error).__name__}); start it (make server), or unset the variable "
            "to run without one"
        ) from error
