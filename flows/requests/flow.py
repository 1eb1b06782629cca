"""The flow that carries out pending requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.runtime import environment
from tasks.runtime.startup import uncollected

environment.apply()  # before Prefect is imported: it reads its settings then
with uncollected():
    from prefect import State, flow, get_run_logger, task
    from prefect.artifacts import create_markdown_artifact
    from prefect.cache_policies import NO_CACHE
    from prefect.runtime import flow_run
    from prefect.states import Completed, Failed

    from efface.errors import EffaceError
    from flows import exchange
    from flows.children import ChildFailed, reproduce
    from flows.devices import device
    from flows.requests.stopping import at_once
    from flows.running import note
    from flows.workspaces import make_project, replace, values_of
    from tasks.config import Params, load_params
    from tasks.requests import finish
    from tasks.requests.intake import read_requests
    from tasks.requests.plan import (
        Plan,
        absent_stages,
        link_models,
        param_overrides,
        plan_run,
        registry_of,
        stage_targets,
    )
    from tasks.requests.promotion import resume
    from tasks.requests.state import RUNS, production_lock
    from tasks.runtime.salt import SALT_VARIABLE, create_salt, read_salt
    from tasks.runtime.sharing import process_count
    from tasks.tracking.registry import Registry

ROOT = Path("data")
_WAITS = [3.0, 15.0]


def _was_the_registry(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether MLflow did not answer: that may pass. What training says is not asked twice."""
    return "does not answer" in str(state.message)


_asks_mlflow = {
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "retries": len(_WAITS),
    "retry_delay_seconds": _WAITS,
    "retry_condition_fn": _was_the_registry,
}


@task(name="plan", **_asks_mlflow)
def plan(params: Params, registry: Registry, only: list[str]) -> Plan | dict[str, str]:
    """Finish what an earlier run left, then choose the requests of this one."""
    log = get_run_logger()
    if change := resume(ROOT):
        log.info("completed an interrupted command: %s, %s", change["kind"], change["result"])
    return plan_run(params, ROOT, registry, only=only)


@task(name="prepare a project", persist_result=False, cache_policy=NO_CACHE)
def prepare(made: Plan, params: Params) -> str:
    """Make the run's folder: a DVC project that starts from the model in production."""
    place = RUNS / made.run
    document = values_of(Path())
    replace(document, param_overrides(made, params))
    make_project(place, document, without=absent_stages(params))
    link_models(made, params, ROOT)
    return place.as_posix()


@task(task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def bring_up_to_date(name: str, folder: str, stages: list[str]) -> str:
    """Run stages of the run's project; those that were finished before are not run again."""
    salt = create_salt(Path())  # the model's card hashes ids as the certificate does
    with device(gpu=True, workers=1, processes=process_count()) as granted:
        return reproduce(
            stages,
            granted,
            get_run_logger().info,
            folder=folder,
            upstream=True,
            flow_run_id=str(flow_run.get_id() or ""),
            environment={SALT_VARIABLE: salt.decode()},
        )


@task(name="register and certify", **_asks_mlflow)
def accept(made: Plan, verdict: finish.Verdict, params: Params, registry: Registry) -> int:
    """Register the new model and write the certificates."""
    requests_by_id, _ = read_requests(ROOT)
    return finish.accept(made, verdict, params, ROOT, registry, requests_by_id).number


@flow(name="requests", result_serializer="json", on_running=[note])
def requests(only: list[str] | None = None) -> State[list[str]]:
    """Take up pending requests, the one due first first; returns a line per request.

    Args:
        only: ids of the requests to take up; None: as many as `requests.batch_size`.
    """
    with at_once():
        return _carried_out(only or [])


def _carried_out(only: list[str]) -> State[list[str]]:
    started = time.monotonic()
    try:
        with production_lock(Path(), "a run of requests"):
            lines, good, folder = _run(only)
        if folder is not None:  # others may go on with the production model meanwhile
            said, shared = _shared(folder)
            lines, good = [*lines, *said], good and shared
    except EffaceError as error:
        return Failed(message=str(error))
    lines.append(f"{time.monotonic() - started:.0f} seconds")
    create_markdown_artifact(
        key="requests", markdown="\n".join(f"- {line}" for line in lines), description="What became of each"
    )
    return Completed(data=lines) if good else Failed(message="\n".join(lines))


def _run(only: list[str]) -> tuple[list[str], bool, str | None]:
    """What became of each request, whether all went well, and the folder of the run, if there was one."""
    params = load_params()
    read_salt(Path())  # one that is too short is told now, not after training
    registry = registry_of(params, ROOT)
    made = plan(params, registry, only)
    if not isinstance(made, Plan):
        return [*made.values(), "no request is pending"], not made, None
    log = get_run_logger()
    log.info("run %s: %s, from version %d", made.run, ", ".join(made.batch), made.start.number)
    folder = prepare(made, params)
    for name, stages in stage_targets(made, params).items():
        bring_up_to_date(name, folder, stages)
    verdict = finish.judge(made, params, ROOT)
    if verdict.failures:
        finish.reject(made, verdict, ROOT)
        failed = "; ".join(verdict.failures)
        refused = [f"request {name} needs attention: {failed}" for name in made.batch]
        stays = f"version {made.start.number} stays in production"
        return [*made.problems.values(), *refused, stays], False, folder
    number = accept(made, verdict, params, registry)
    where = "in production" if params.requests.auto_promote else "the candidate"
    done = [f"request {name}: version {number} has forgotten them and is {where}" for name in made.batch]
    return [*made.problems.values(), *done], not made.problems, folder


def _shared(folder: str) -> tuple[list[str], bool]:
    """Share what the run made, where there is a storage; a failure undoes nothing, and a line says so."""
    try:
        said = exchange.share(folder)
    except ChildFailed as error:
        return [f"not shared yet: {error.last}"], False
    return [said] if said else [], True


def run(only: list[str], say: Callable[[str], None]) -> bool:
    """Run the flow in this process; whether all went well."""
    state = requests(only, return_state=True)
    if state.is_completed():
        for line in state.result():
            say(line)
        return True
    say(f"error: {state.message}")
    return False
