"""A worker for this machine: python -m flows.worker.

Takes up the runs that died with the machine, then becomes Prefect's own worker.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from tasks.runtime import environment

environment.apply()  # before Prefect is imported: it reads its settings then

from efface.errors import EffaceError  # noqa: E402
from flows.server import require_server  # noqa: E402
from tasks.tracking.client import redact  # noqa: E402


def main(
    pool: Annotated[str, typer.Option(help="The work pool.")] = "gpu",
    name: Annotated[str | None, typer.Option(help="Name of the worker; by default the machine's.")] = None,
) -> None:
    """Work on the runs of a pool until it is stopped (what runs then is taken up at the next start)."""
    try:
        address = require_server(needed=True)
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    from prefect.client.orchestration import get_client

    from flows.running import reschedule

    with get_client(sync_client=True) as client:
        again = reschedule(client)
    if again:
        typer.echo(f"worker: taken up again: {', '.join(again)}")
    typer.echo(f"worker: at work for the pool {pool} of {redact(address)}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    os.execv(sys.executable, [*command, "--name", name or socket.gethostname()])


if __name__ == "__main__":
    typer.run(main)
