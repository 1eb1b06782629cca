"""What a flow run exchanges with other machines, as Prefect tasks: tried again, which training is not.

A network or a server that fails may be back in a minute; a training error would only come back.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.runtime import flow_run

from efface.errors import EffaceError
from flows.children import ChildFailed, run_module
from flows.storage import address

_WAITS = [5, 30, 120]


def waits() -> list[float]:
    """Seconds before each new try: ``EFFACE_RETRY_SECONDS``, such as ``5,30,120``; empty: no second try."""
    given = os.environ.get("EFFACE_RETRY_SECONDS")
    if given is None:
        return [float(wait) for wait in _WAITS]
    try:
        return [float(wait) for wait in given.split(",") if wait.strip()]
    except ValueError as error:
        raise EffaceError(
            f"EFFACE_RETRY_SECONDS is {given!r}: expected seconds with commas between, such as 5,30,120"
        ) from error


@task(name="exchange", persist_result=False, tags=["io"])
def _exchange(module: str, *arguments: str) -> str:
    """Run one of this project's commands; its last line says what it did."""
    run = str(flow_run.get_id() or "")
    lines = run_module(module, arguments, get_run_logger().info, flow_run_id=run)
    return lines[-1] if lines else ""


def fetch(target: str | None) -> str | None:
    """Fetch from the shared storage what the target needs; a line about it, None without a storage.

    Raises:
        ChildFailed: when the last try failed too.
    """
    if address() is None:
        return None
    return _retried("pull")("flows.storage", "pull", *([] if target is None else ["--target", target]))


def share(folder: str = ".") -> str | None:
    """Share what is here; a line about it, None without a storage.

    Args:
        folder: the DVC project.

    Raises:
        ChildFailed: when the last try failed too. What was made is still here.
    """
    if address() is None:
        return None
    return _retried("push")("flows.storage", "push", *([] if folder == "." else ["--folder", folder]))


def track() -> str | None:
    """Make sure that a tracking server has the result; None if results are tracked on this machine alone.

    A server that does not answer is no failure of the run: the line says so, and the next run sends what is
    missing.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        return _retried("track")("tasks", "track")
    except ChildFailed as error:
        get_run_logger().warning("not tracked: %s", error)
        return f"Not tracked yet: {error.last}"


def _may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    return "cannot be used" not in str(state.message)  # an address that makes no sense stays one


def _retried(name: str) -> Task[..., str]:
    delays = waits()
    return _exchange.with_options(
        name=name,
        task_run_name=name,
        retries=len(delays),
        retry_delay_seconds=delays or None,
        retry_jitter_factor=0.2 if delays else None,
        retry_condition_fn=_may_pass,
    )
