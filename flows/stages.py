"""One Prefect task per stage of dvc.yaml, Cached if and only if DVC calls the stage current."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.commands import CommandFailed, query, reproduce, stale_stages
from flows.devices import default_workers, device
from flows.sharing import fetch, has_remote, share
from flows.summary import Row, publish
from tasks.config import STAGES
from tasks.runtime.sharing import processes_of


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, current: bool, upstream: list[Any], stages: Stages) -> Row | State[Row]:
    """Bring one stage up to date, after the stages that it reads from."""
    if current and all(row.outcome == "cached" for row in upstream):
        return Completed(name="Cached", data=Row(stage, "cached"))
    log, started = get_run_logger(), time.monotonic()
    processes = processes_of(stage) if _uses_model(stage) else 0
    with stages.slots, device(processes=processes, workers=stages.workers) as environment:
        try:
            outcome = reproduce(
                stage,
                log=log.info,
                options=("--single-item", *stages.options),
                environment={"EFFACE_FLOW_RUN_ID": str(flow_run.get_id() or ""), **environment},
            )
        except CommandFailed as error:
            return Failed(message=f"stage {stage}: {error}")
    row = Row(stage, outcome, time.monotonic() - started)
    return row if outcome == "ran" else Completed(name=outcome.capitalize(), data=row)


def _is_of_a_stage_that_ran(record: logging.LogRecord) -> bool:
    """Whether a record is not Prefect's line for a stage after a failed one; `finish` logs one for all."""
    return not record.getMessage().startswith("Finished in state NotReady")


def _uses_model(stage: str) -> bool:
    """Whether a stage of dvc.yaml computes with a model, and so needs a GPU if there is one."""
    name = stage.partition("@")[0]
    return any(entry.gpu for entry in STAGES.values() if name in entry.dvc)


class Stages:
    """Submits the stages of a flow run as tasks; `finish` waits for them and publishes the summary.

    Args:
        workers: number of stages to run at once; None: as many as the devices allow.
        target: run this stage and its dependencies; None: all stages.

    Raises:
        CommandFailed: if DVC cannot read the project, another DVC process holds it, or it lacks the target.
    """

    def __init__(self, workers: int | None, target: str | None) -> None:
        self.workers = workers or default_workers()
        self.slots = threading.Semaphore(self.workers)
        self._remote = has_remote()
        self.options = ("--pull",) if self._remote and fetch() else ()
        self._stale = stale_stages()
        # `dvc dag TARGET` draws the target and everything it needs.
        self._target = set(re.findall(r'"([^"]+)"', query("dag", "--dot", target))) if target else None
        self._futures: dict[str, PrefectFuture[Any]] = {}
        logging.getLogger("prefect.task_runs").addFilter(_is_of_a_stage_that_ran)

    def __call__(self, stage: str, *upstream: PrefectFuture[Any] | None) -> PrefectFuture[Any] | None:
        """Submit a stage that reads the upstream stages' outputs; None if the target does not need it."""
        if self._target is not None and stage not in self._target:
            return None
        current = stage not in self._stale
        self._futures[stage] = run_stage.with_options(name=stage).submit(
            stage,
            current,
            [future for future in upstream if future is not None],  # Prefect passes their rows
            self,
        )
        return self._futures[stage]

    def finish(self) -> State[list[str]]:
        """Wait for all stages, share their results, publish the summary; returns the state of the flow."""
        rows, failures = [], []
        for stage, future in self._futures.items():
            future.wait()
            if future.state.is_completed():
                rows.append(future.result())
            elif future.state.is_pending():  # a stage that it needs failed
                rows.append(Row(stage))
            else:
                rows.append(Row(stage, "failed"))
                failures.append(str(future.state.message))
        if self._remote:
            share()
        publish(rows)
        if missing := [row.name for row in rows if row.outcome == "not run"]:
            get_run_logger().error("not run, as a stage that they need failed: %s", ", ".join(missing))
        if failures:
            return Failed(message="\n".join(failures))
        return Completed(data=[f"{row.name}: {row.outcome}" for row in rows])
