"""One Prefect task per stage of dvc.yaml, cached exactly when DVC calls the stage current."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, TypedDict

from prefect import get_run_logger, task
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows import exchange
from flows.children import ChildFailed, StageFailed, reproduce, terminate_all
from flows.devices import default_workers, device
from flows.ledger import Ledger, ProjectError
from flows.summary import DONE, Row, publish
from tasks.runtime.sharing import processes_of

_OUT_OF_MEMORY = ("CUDA out of memory", "OutOfMemoryError")


class Record(TypedDict):
    """What a stage's task returns: small, and enough to find and check what was made."""

    stage: str
    outputs: dict[str, str]
    """Path to the hash DVC recorded."""


@dataclass
class _Work:
    """What the tasks of one flow run share."""

    ledger: Ledger
    workers: int
    rows: dict[str, Row] = field(default_factory=dict)
    slots: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = threading.Semaphore(self.workers)


_work: ContextVar[_Work] = ContextVar("work")


def _cache_key(context: TaskRunContext, arguments: dict[str, Any]) -> str | None:
    """DVC's recorded hashes for a current stage; None, which never hits, for any other."""
    ledger = _work.get().ledger
    stage = arguments["stage"]
    return ledger.fingerprint(stage) if ledger.is_current(stage) else None


def _ran_out_of_memory(task: Any, run: Any, state: State[Any]) -> bool:
    return any(words in str(state.message) for words in _OUT_OF_MEMORY)


@task(
    task_run_name="{stage}",
    cache_key_fn=_cache_key,
    persist_result=True,
    result_serializer="json",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=_ran_out_of_memory,
)
def run_stage(stage: str, upstream: list[Record]) -> Record | State[Record]:
    """Bring one stage up to date; those it reads from are, since their records are at hand."""
    work = _work.get()
    if work.ledger.is_current(stage):  # though Prefect has not seen it so before: made by `dvc repro`, say
        return Completed(name="Cached", data=_record(stage, work.ledger))
    row, log = work.rows[stage], get_run_logger()
    beside = 1 if work.ledger.runs_alone(stage) else work.workers
    gpu, processes = work.ledger.stages[stage].gpu, processes_of(stage)
    with work.slots, device(gpu=gpu, workers=beside, processes=processes) as granted:
        started, row.outcome = time.monotonic(), "failed"
        try:
            row.outcome = reproduce([stage], granted, log.info, flow_run_id=str(flow_run.get_id() or ""))
        except StageFailed as error:
            return Failed(message=str(error))
        finally:
            row.seconds = time.monotonic() - started
    work.ledger.finished(stage)
    record = _record(stage, work.ledger)
    _remember(record, work.ledger.fingerprint(stage))
    return record if row.outcome == "ran" else Completed(name=row.outcome.capitalize(), data=record)


def _record(stage: str, ledger: Ledger) -> Record:
    return {"stage": stage, "outputs": ledger.outputs(stage)}


def _remember(record: Record, key: str) -> None:
    """Store the record under the key the stage has from now on, so that Prefect hits it the next time."""
    context = TaskRunContext.get()
    if context is not None:
        context.result_store.write(record, key=key)


class Stages:
    """Submits stages as tasks; when the block ends, waits for all of them and says what happened."""

    verdict: State[list[str]]
    """State of the flow once the block has ended."""

    def __init__(self, workers: int | None, target: str | None) -> None:
        fetched = exchange.fetch(target)  # before DVC is asked what there is to do
        ledger = Ledger.open()
        self._notes = [fetched] if fetched else []
        self._work = _Work(ledger, workers or default_workers())
        self._wanted = set(ledger.stages) if target is None else ledger.upstream(target)
        self._futures: dict[str, PrefectFuture[Record]] = {}
        self._token: Token[_Work] | None = None

    def __call__(self, stage: str, *upstream: PrefectFuture[Record] | None) -> PrefectFuture[Record] | None:
        """Submit a stage that reads what the upstream stages make; None if it is not wanted.

        Raises:
            ProjectError: if dvc.yaml makes the stage read from others than these.
        """
        self._must_agree_with_dvc(stage, upstream)
        if stage not in self._wanted:
            return None
        self._work.rows[stage] = Row(stage)
        made_from = [future for future in upstream if future is not None]
        self._futures[stage] = run_stage.with_options(name=stage).submit(stage, made_from)
        return self._futures[stage]

    def _must_agree_with_dvc(self, stage: str, upstream: tuple[PrefectFuture[Record] | None, ...]) -> None:
        facts = self._work.ledger.stages.get(stage)
        if facts is None:
            raise ProjectError(f"flows/pipeline.py runs {stage}, which dvc.yaml does not have")
        given = {name for name, future in self._futures.items() if any(future is each for each in upstream)}
        missing = (facts.needs & self._wanted) - given
        if stage in self._wanted and missing:
            raise ProjectError(
                f"flows/pipeline.py starts {stage} without {', '.join(sorted(missing))}: see dvc.yaml"
            )

    def __enter__(self) -> Stages:
        self._token = _work.set(self._work)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException:
            terminate_all()
            raise
        finally:
            if error is not None:
                terminate_all()  # or the threads that read from them would hold the flow up
            publish(list(self._work.rows.values()), notes=self._notes)
            if self._token is not None:
                _work.reset(self._token)

    def _finish(self) -> None:
        states = {}
        for stage, future in self._futures.items():
            future.wait()
            states[stage] = future.state
            if future.state.is_completed() and future.state.name == "Cached":
                self._work.rows[stage].outcome = "cached"
        forgotten = self._wanted - set(self._futures)
        failures = [
            str(state.message) for state in states.values() if state.is_failed() or state.is_crashed()
        ]
        waiting = [stage for stage, state in states.items() if state.is_pending()]
        if waiting:
            failures.append(f"not run, because they need it: {', '.join(waiting)}")
        if forgotten:
            failures.append(f"in dvc.yaml, but not in flows/pipeline.py: {', '.join(sorted(forgotten))}")
        failures += self._hand_over()
        lines = [f"{row.stage}: {row.outcome}" for row in self._work.rows.values()]
        self.verdict = Failed(message="\n".join(failures)) if failures else Completed(data=lines)

    def _hand_over(self) -> list[str]:
        """Track and share what there is, after a failure too; returns what went wrong in that."""
        report = self._work.rows.get("report")
        try:
            tracked = exchange.track() if report is not None and report.outcome in DONE else None
            self._notes += [tracked] if tracked else []
            shared = exchange.share()
        except ChildFailed as error:
            self._notes.append(f"Not shared yet: {error.last}")
            return [str(error)]
        self._notes += [shared] if shared else []
        return []
