"""The flow that carries out pending requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed

from efface.errors import EffaceError
from flows.commands import ending_with_flow, reproduce
from flows.devices import device
from flows.requests.approval import (
    NEEDS_ATTENTION,
    WAITING,
    decide,
    own_candidate,
    tell,
    tell_overdue,
)
from flows.requests.project import make_project
from flows.requests.purge import due_purges, purge_request
from flows.sharing import has_remote, share
from tasks.config import Params, load_params
from tasks.requests import finish
from tasks.requests.certificates import signing_key
from tasks.requests.intake import RequestError, read_requests
from tasks.requests.notify import tell_done
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
from tasks.requests.timestamps import add_stamps, check_timestamps
from tasks.runtime.artifacts import disk_is_full
from tasks.runtime.salt import SALT_VARIABLE, create_salt, read_salt
from tasks.runtime.sharing import process_count
from tasks.tracking.registry import Registry

ROOT = Path("data")
_RETRY_SECONDS = [3.0, 15.0]


def _mlflow_was_away(task: Any, run: Any, state: State[Any]) -> bool:
    return "does not answer" in str(state.message)


_reads_mlflow: dict[str, Any] = {
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "retries": len(_RETRY_SECONDS),
    "retry_delay_seconds": _RETRY_SECONDS,
    "retry_condition_fn": _mlflow_was_away,
}


@task(name="plan", **_reads_mlflow)
def plan(params: Params, registry: Registry, only: list[str]) -> Plan | dict[str, str]:
    """Complete an interrupted command, then choose the requests of this run."""
    log = get_run_logger()
    if change := resume(ROOT):
        log.info("completed an interrupted command: %s, %s", change["kind"], change["result"])
    return plan_run(params, ROOT, registry, only=only)


@task(name="prepare a project", persist_result=False, cache_policy=NO_CACHE)
def prepare(run: Plan, params: Params) -> str:
    """Create the run's folder: a DVC project that starts from the model in production."""
    folder = RUNS / run.run
    make_project(folder, param_overrides(run, params), without=absent_stages(params))
    link_models(run, params, ROOT)
    return folder.as_posix()


@task(task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def bring_up_to_date(name: str, folder: str, stages: list[str]) -> str:
    """Run stages of the run's project and their dependencies; finished ones are not run again."""
    salt = create_salt(Path())  # the model card hashes ids as the certificate does
    with device(processes=process_count(), workers=1) as environment:
        return reproduce(
            *stages,
            log=get_run_logger().info,
            folder=folder,
            environment={
                "EFFACE_FLOW_RUN_ID": str(flow_run.get_id() or ""),
                SALT_VARIABLE: salt.decode(),
                **environment,
            },
        )


@task(name="register and certify", **_reads_mlflow)
def accept(run: Plan, verdict: finish.Verdict, params: Params, registry: Registry) -> int:
    """Register the new model and write the certificates."""
    requests_by_id, _ = read_requests(ROOT)
    this_run = str(flow_run.get_id() or "")
    return finish.accept(run, verdict, params, ROOT, registry, requests_by_id, flow_run=this_run).number


@flow(name="requests")
def requests(only: list[str] | None = None) -> State[list[str]]:
    """Carry out pending requests, the earliest due date first; returns a line per request.

    Args:
        only: ids of the requests to carry out; None: as many as `requests.batch_size`.
    """
    started = time.monotonic()
    try:
        with ending_with_flow():
            deployed, registry = bool(deployment.id), registry_of(load_params(), ROOT)
            candidate = own_candidate(registry) if deployed else None
            if candidate is None:
                with production_lock(Path(), "a run of requests"):
                    lines, success, folder = _carry_out(only or [], deployed=deployed)
                if folder is not None and has_remote(folder):  # the production model is free meanwhile
                    share(folder)
                candidate = own_candidate(registry) if deployed else None
            if candidate is not None:  # this run ends here, and restarts with the decision
                lines, success = decide(load_params(), ROOT, registry, candidate), True
    except EffaceError as error:
        return Failed(message=str(error))
    except OSError as error:
        if not disk_is_full(error):
            raise
        return Failed(message=f"{error}; make room and run again, which continues")
    lines.append(f"{time.monotonic() - started:.0f} seconds")
    create_markdown_artifact(
        key="requests",
        markdown="\n".join(f"- {line}" for line in lines),
        description="Outcome of each request",
    )
    return Completed(data=lines) if success else Failed(message="\n".join(lines))


def _carry_out(only: list[str], *, deployed: bool) -> tuple[list[str], bool, str | None]:
    """A line per request, whether all went well, and the folder of the run, if there was one."""
    params = load_params()
    read_salt(Path())  # what is wrong with the salt, the key or stamps is reported now, not after training
    signing_key(ROOT)
    check_timestamps(params, ROOT)
    registry = registry_of(params, ROOT)
    if deployed:
        tell_overdue(ROOT)
    lines, unpurged = _purge(params, registry) if deployed else ([], [])
    run = plan(params, registry, only)
    problems = run.problems if isinstance(run, Plan) else run
    # Without the reasons, which name people: Prefect stores these lines.
    lines += [f"request {name} is invalid: python -m flows.requests list says why" for name in problems]
    if not isinstance(run, Plan):
        return [*lines, "no request is pending"], not run and not unpurged, None
    log = get_run_logger()
    log.info("run %s: %s, from version %d", run.run, ", ".join(run.batch), run.start.number)
    folder = prepare(run, params)
    first, *later = stage_targets(run, params).items()
    bring_up_to_date(first[0], folder, first[1])
    if unknown := finish.unknown_requests(run, params, ROOT):
        for name in unknown:
            tell(NEEDS_ATTENTION, name)
        refused = [f"request {name} needs attention: its people are not in the model" for name in unknown]
        remaining = [name for name in only if name not in unknown]
        if only and not remaining:
            return [*lines, *refused], False, folder
        rest, _, last = _carry_out(remaining, deployed=False)
        return [*refused, *rest], False, last or folder
    for name, stages in later:
        bring_up_to_date(name, folder, stages)
    verdict = finish.judge(run, params, ROOT)
    if verdict.failures:
        finish.reject(run, verdict, ROOT)
        for name in run.batch:
            tell(NEEDS_ATTENTION, name)
        reasons = "; ".join(verdict.failures)
        refused = [f"request {name} needs attention: {reasons}" for name in run.batch]
        refused.append(f"version {run.start.number} stays in production")
        return [*lines, *refused], False, folder
    number = accept(run, verdict, params, registry)
    for line in add_stamps(params, ROOT):
        log.warning(line)  # a run that waits for approval returns no lines
        lines.append(line)
    for name in run.batch if not params.requests.auto_promote else ():
        tell(WAITING, name)
    role = "in production" if params.requests.auto_promote else "the candidate"
    lines += [f"request {name}: version {number} has forgotten them and is {role}" for name in run.batch]
    if params.requests.auto_promote:
        lines += tell_done(params, ROOT, registry, run.batch)
    return lines, not run.problems and not unpurged, folder


def _purge(params: Params, registry: Registry) -> tuple[list[str], list[str]]:
    """Purge the requests whose grace period is over; lines, and the requests whose purge was refused."""
    lines, refused = [], []
    for name in due_purges(params, ROOT, registry):
        try:
            _, notes = purge_request(params, ROOT, registry, name, log=get_run_logger().info)
        except RequestError:  # one that cannot be purged holds up no other
            refused.append(name)
            lines.append(f"request {name} is not purged: python -m flows.requests purge {name} says why")
        else:
            lines += [f"request {name}: the data of its people are deleted", *notes]
    return lines, refused


def run(only: list[str], echo: Callable[[str], None]) -> bool:
    """Run the flow in this process; returns whether it succeeded."""
    state = requests(only, return_state=True)
    if state.is_completed():
        lines: Any = state.result()
        for line in lines:
            echo(line)
        return True
    echo(f"error: {state.message}")
    return False
