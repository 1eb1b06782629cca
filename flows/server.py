"""Whether the Prefect server that the environment names is there."""

from __future__ import annotations

from typing import Literal, overload

from efface.errors import EffaceError
from tasks.tracking.client import redact

_SECONDS = 5.0


class ServerError(EffaceError):
    """Prefect's server does not answer."""


@overload
def require_server(*, needed: Literal[True]) -> str: ...


@overload
def require_server(*, needed: bool = False) -> str | None: ...


def require_server(*, needed: bool = False) -> str | None:
    """The server's address; None if none is named, and a flow starts one of its own.

    Args:
        needed: whether a server of its own is no way out, as for a worker.

    Raises:
        ServerError: within seconds, if none answers at the address that is named.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    if address is None:
        if needed:
            raise ServerError(
                "PREFECT_API_URL is not set; start a server (make server) and set it: "
                "export PREFECT_API_URL=http://127.0.0.1:4200/api"
            )
        return None
    try:
        # Any answer will do: one that asks who is there is for Prefect's own client.
        httpx.get(f"{address.rstrip('/')}/health", timeout=_SECONDS)
    except httpx.HTTPError as error:
        way_out = "" if needed else ", or unset PREFECT_API_URL to run without one"
        raise ServerError(
            f"no Prefect server answers at {redact(address)} ({redact(str(error)) or type(error).__name__}); "
            f"start it (make server){way_out}"
        ) from error
    return str(address)
