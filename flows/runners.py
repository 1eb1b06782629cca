"""Where a study's cells run: in threads here, or on a Dask or Ray cluster that shares the project's disk.

A cell is one DVC project, and whoever runs it starts DVC in a process of its own: a thread or a cluster's
worker only waits. Which cluster: `DASK_SCHEDULER_ADDRESS` and `RAY_ADDRESS`, as Dask and Ray themselves read
them; without, one is started on this machine for as long as the study lasts.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.workspaces import StudyError

_SECONDS = 5.0


def runner(kind: str, workers: int) -> TaskRunner[Any]:
    """Prefect's own runner of that kind.

    Args:
        kind: ``threads``, ``dask`` or ``ray``.
        workers: cells side by side; a cluster that is there already has its own number.

    Raises:
        StudyError: if the runner's package is not installed, or its workers have no server to report to.
    """
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        made = _dask(workers) if kind == "dask" else _ray(workers)
    except ImportError as error:
        raise StudyError(
            f"study.runner is {kind}, which needs a package that is not here ({error}); "
            f"install it (pip install -c constraints.txt 'efface[{kind}]') or set study.runner to threads"
        ) from error
    if not PREFECT_API_URL.value():
        raise StudyError(
            f"study.runner is {kind}: its workers are processes of their own and need a Prefect server to "
            "report to; start one (make server) and set PREFECT_API_URL, or set study.runner to threads"
        )
    return made


@contextlib.contextmanager
def running_on(chosen: TaskRunner[Any]) -> Iterator[None]:
    """Let the tasks of the flow that runs here run there.

    A flow has its runner before it starts, but which one it shall be is said in params.yaml, and a flow that
    a worker starts has nobody to read that first.

    Raises:
        RuntimeError: outside of a flow.
        StudyError: if there is no cluster at the address that the environment names.
    """
    here = FlowRunContext.get()
    if here is None:
        raise RuntimeError("no flow runs here; call this inside one")
    with contextlib.ExitStack() as stack:
        address = getattr(chosen, "address", None) or ""
        try:
            _must_answer(address)
            started = stack.enter_context(chosen.duplicate())
            getattr(started, "client", None)  # Dask connects when it is first asked for, Ray above
        except OSError as error:
            raise StudyError(
                f"no cluster for {type(chosen).__name__} answers at {address} ({error}); start it, or unset "
                "DASK_SCHEDULER_ADDRESS or RAY_ADDRESS to have one started here (docs/scaling.md)"
            ) from error
        stack.enter_context(here.model_copy(update={"task_runner": started}))
        yield


def _must_answer(address: str) -> None:
    """Raise OSError within seconds if nothing listens there: Ray would try for five minutes, then leave."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_SECONDS).close()


def _dask(workers: int) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address:
        return DaskTaskRunner(address=address)
    local = {"host": "127.0.0.1", "n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)


def _ray(workers: int) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    address = os.environ.get("RAY_ADDRESS")
    if address:
        return RayTaskRunner(address=address)
    return RayTaskRunner(init_kwargs={"num_cpus": workers, "include_dashboard": False})
