"""Where a study's cells run: in threads here, or on a Dask or Ray cluster that shares the project's disk.

A cell is one DVC project, and whoever runs it starts DVC in a process of its own: a thread or a cluster's
worker only waits. Which cluster: `DASK_SCHEDULER_ADDRESS` and `RAY_ADDRESS`, as Dask and Ray themselves read
them; without, one is started on this machine for as long as the study lasts.
"""

from __future__ import annotations

import os
from typing import Any

from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.workspaces import StudyError


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
