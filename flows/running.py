"""Which flow runs were going on here when the machine, or all that ran on it, went down.

A run that dies with its worker stays Running in Prefect for ever, and in a pool with one slot nothing starts
after it. So each run holds a lock on a file of this project while it lives. The kernel frees the lock with
its process, however that went, and a worker that starts again finds the file with nobody holding it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FOLDER = Path(".efface/flow-runs")
_held: list[int] = []


def note(flow: Any, run: Any, state: Any) -> None:
    """Hold this flow run's file until the process ends; for a flow's ``on_running``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = (FOLDER / str(run.id)).absolute()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(BlockingIOError):  # held already: entered Running a second time
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.append(descriptor)
    atexit.register(path.unlink, missing_ok=True)  # an orderly end has been reported


def left_behind() -> list[UUID]:
    """Flow runs of this project whose process is gone, ended or not."""
    return [UUID(path.name) for path in sorted(FOLDER.glob("*-*")) if _nobody_holds(path)]


def reschedule(client: SyncPrefectClient) -> list[str]:
    """Give runs that died with their worker back to the pool; finished stages and checkpoints are kept.

    Returns:
        Their names.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    again = []
    for run_id in left_behind():
        with contextlib.suppress(ObjectNotFound):
            run = client.read_flow_run(run_id)
            state = run.state
            going = state is not None and (state.is_running() or state.is_pending())
            if going and run.deployment_id is None:  # started by hand: nobody would take it up
                client.set_flow_run_state(run_id, Crashed(message="Its process is gone."), force=True)
            elif going:
                why = "The process of this run ended with its machine; it goes on from its last checkpoint."
                client.set_flow_run_state(run_id, AwaitingRetry(message=why), force=True)
                again.append(run.name)
            elif state is not None and state.is_cancelling():
                client.set_flow_run_state(run_id, Cancelled(message="Its process is gone."), force=True)
        (FOLDER / str(run_id)).unlink(missing_ok=True)
    return again


def _nobody_holds(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
