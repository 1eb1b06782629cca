"""Fetching and sharing the outputs of stages through a DVC remote, as Prefect tasks."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.commands import CommandFailed, dvc, query


def has_remote(folder: str = ".") -> bool:
    """Whether the project has a default remote (``dvc remote default``)."""
    try:
        return bool(query("config", "core.remote", folder=folder).strip())
    except CommandFailed:  # how DVC reports a missing setting
        return False


@task(task_run_name="fetch", cache_policy=NO_CACHE, persist_result=False)
def fetch() -> bool:
    """Fetch other machines' results, with DVC's run cache; returns whether that worked.

    If the remote does not answer, the stages run here instead.
    """
    return _transfer("fetch", ".")


@task(task_run_name="share", cache_policy=NO_CACHE, persist_result=False)
def share(folder: str = ".") -> bool:
    """Send this machine's results; returns whether that worked. After a failure the next run sends them."""
    return _transfer("push", folder)


def _transfer(command: str, folder: str) -> bool:
    log = get_run_logger()
    try:
        dvc(command, "--run-cache", log=log.debug, folder=folder)
    except CommandFailed as error:
        log.warning("dvc %s failed, the run goes on without it: %s", command, error.last_line)
        return False
    return True
