"""Many runs of the pipeline as one Prefect flow: python -m flows.study.

A cell is a forget set of one seed, with all methods; before that, a cell of the tuning seed tries one setting
of every method. A cell runs as one DVC experiment: `dvc exp show` lists them, and `dvc exp apply NAME` brings
one into the workspace. DVC's run cache keeps a stage from being computed twice: the cells of a seed share its
base and vanilla model and their answers. A cell or method that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from efface.errors import EffaceError
from flows.commands import CommandFailed, dvc, ending_with_flow, fetch_outputs, outcome_of, query
from flows.devices import default_workers, device
from flows.server import require_server
from flows.summary import Row, publish
from tasks.config import Params, load_params
from tasks.runtime.sharing import process_count
from tasks.studies import comparison
from tasks.studies.cells import Finished
from tasks.studies.plan import StudyPlan, plan_of

_STARTED = re.compile(r"Reproducing experiment '(.+)'")
_ATTEMPTS = 5
_starting = threading.Lock()
_FAILED_STAGE = re.compile(r"failed to reproduce '(\w+)(?:@(\w+))?'")
_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


@dataclass(frozen=True)
class Cell:
    """One experiment.

    Attributes:
        seed: seed of people, weights and batches.
        fold: number of the forget set; None: the base and vanilla model of the seed, which all folds share.
        setting: number of the settings to try; None: the chosen ones.
    """

    seed: int
    fold: int | None = None
    setting: int | None = None

    @property
    def title(self) -> str:
        """The cell in tables and in Prefect."""
        if self.fold is None:
            return f"seed {self.seed}: base and vanilla"
        return f"seed {self.seed}, fold {self.fold}" + (
            "" if self.setting is None else f", setting {self.setting}"
        )

    @property
    def name(self) -> str:
        """The name of the experiment in DVC."""
        return re.sub(r"\W+", "-", self.title)

    @property
    def folder(self) -> Path:
        """Folder of its score tables and run records."""
        folder = comparison.FOLDER / f"seed{self.seed}" / f"fold{self.fold}"
        return folder if self.setting is None else folder / f"setting{self.setting}"


@dataclass(frozen=True)
class Work:
    """The work of a cell.

    Attributes:
        cell: the cell.
        methods: its methods.
        models: the models that it scores.
        changes: changes to params.yaml, in the form of ``dvc exp run --set-param``.
        plan: plan of the study.
        attacks: whether its models are attacked.
    """

    cell: Cell
    methods: tuple[str, ...]
    models: tuple[str, ...]
    changes: tuple[str, ...]
    plan: StudyPlan
    attacks: bool = False

    def stages(self, without: set[str]) -> list[str]:
        """Stages to bring up to date."""
        if self.cell.fold is None:
            return ["score@base", "score@vanilla"]
        kinds = {"unlearn": "evaluate_unlearned", "prune": "evaluate_pruned"}
        models = [model for model in self.models if model not in without]
        stages = [
            f"{kinds[self.plan.methods[model].kind] if model in self.methods else 'evaluate'}@{model}"
            for model in models
        ]
        return stages + [f"attack@{model}" for model in models if self.attacks and model != "base"]

    def results(self, without: set[str]) -> list[str]:
        """Files of the experiment that the comparison reads."""
        models = (
            [model for model in self.models if model not in without] if self.cell.fold is not None else []
        )
        records = {f"{self.plan.methods[m].kind}@{m}" for m in models if m in self.methods}
        records |= {f"evaluate@{model}" for model in models}
        for model in set(models) & set(self.methods):
            for need in self.plan.methods[model].needs - {*self.methods}:
                records.add(need if need in ("saliency", "importance") else f"control@{need}")
        if "retrained" in models:
            records.add("retrained")
        paths = [f"data/scores/{model}{suffix}" for model in models for suffix in (".parquet", ".json")]
        if self.attacks:
            attacked = [model for model in models if model != "base"]
            paths += [
                f"data/attacks/{model}{suffix}" for model in attacked for suffix in (".parquet", ".json")
            ]
        return paths + [f"data/runs/{record}.json" for record in sorted(records)]


def work_of(cell: Cell, params: Params, plan: StudyPlan, selected: Mapping[str, int]) -> Work:
    """What a cell runs and changes.

    Args:
        cell: the cell.
        params: the whole file.
        plan: plan of the study.
        selected: method to number of its settings; a method without one is left out of reported cells.
    """
    study = params.study
    values: dict[str, Any] = {"seed": cell.seed, "avatars.seed": cell.seed}
    if cell.fold is None:
        return Work(cell, (), (), _set(values), plan)
    if study.folds is not None:
        values |= {"split.folds": study.folds, "split.fold": cell.fold, "split.forget_people": None}
    if not params.evaluate.shots:  # settings are chosen on another seed, so all people are tested
        values["split.validation_fraction"] = 0.0
    methods = tuple(plan.methods if cell.setting is not None else (m for m in plan.methods if m in selected))
    for name in methods:
        method = plan.methods[name]
        index = selected[name] if cell.setting is None else cell.setting
        settings = method.settings[min(index, len(method.settings) - 1)]
        for key, value in {**method.entry, **settings}.items():
            values[f"{method.kind}.methods.{name}.{key}"] = value
    masks = {need for name in methods for need in plan.methods[name].needs}
    if controls := sorted(masks & {"random", "magnitude"}):
        values["saliency.controls"] = controls
    models = [
        "base",
        "vanilla",
        *(["retrained"] if cell.fold == 0 and cell.setting is None else []),
        *methods,
    ]
    attacks = study.attacks and "retrained" in models
    if attacks:
        values["attack.models"] = models[1:]
    # Method names are unique, so those of the study are moved; DVC writes broken YAML for an emptied mapping.
    return Work(cell, methods, tuple(models), ("~study", *_set(values)), plan, attacks)


def _set(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"++{key}={json.dumps(value)}" for key, value in values.items())


def failed_methods(error: CommandFailed, work: Work) -> set[str]:
    """The methods of a cell that cannot run because a stage failed; empty: the whole cell failed."""
    match = _FAILED_STAGE.search(str(error))
    if match is None:
        return set()
    stage, name = match.groups()
    if name in work.methods:
        return {
            name,
            *(dependent for dependent in work.methods if name in work.plan.methods[dependent].needs),
        }
    need = name if stage == "control" else stage
    return {method for method in work.methods if need in work.plan.methods[method].needs}


@task(task_run_name="{work.cell.title}", cache_policy=NO_CACHE, persist_result=False)
def run_cell(work: Work, runs: Runs, reference: Any) -> State[Row]:
    """Run a cell's experiment after `reference`, the seed's base and vanilla, and fetch its results."""
    log, started, cell = get_run_logger(), time.monotonic(), work.cell
    settings = [word for change in work.changes for word in ("--set-param", change)]
    without: set[str] = set()
    lines: list[str] = []
    attempts = 0
    try:
        with runs.slots, device(processes=process_count(), workers=runs.workers) as environment:
            with contextlib.suppress(CommandFailed):  # there may be no earlier one of that name
                query("--wait-for-lock", "exp", "remove", cell.name)
            while not lines:
                try:
                    arguments = *settings, *work.stages(without)
                    lines = _run_experiment(cell.name, arguments, log.info, environment)
                    attempts += 1
                    if not lines:
                        _require_attempts(cell.name, attempts)
                except CommandFailed as error:
                    failed = failed_methods(error, work) - without
                    if not failed:
                        raise
                    without |= failed
                    log.warning("%s: without %s: %s", cell.title, ", ".join(sorted(failed)), error.last_line)
                    runs.leave_out(cell, failed, error.last_line)
            fetch_outputs(cell.name, {path: cell.folder / path[5:] for path in work.results(without)})
    except EffaceError as error:
        return Failed(message=str(error))
    outcome, seconds = outcome_of(lines), time.monotonic() - started
    models = tuple(model for model in work.models if model not in without)
    log.info(runs.finish(cell, models, seconds if outcome == "ran" else None))
    return Completed(
        name="Completed" if outcome == "ran" else outcome.capitalize(),
        data=Row(cell.title, outcome, seconds),
    )


def _run_experiment(
    name: str, arguments: Sequence[str], log: Callable[[str], None], environment: Mapping[str, str]
) -> list[str]:
    """Run one experiment in a temporary folder, and return DVC's lines; none: another process took it.

    All ``dvc exp run --temp`` of a project share a queue. Each puts its experiment there, takes one, and goes
    on until the queue is empty: it also runs what another process has just put there. So one process starts
    at a time, and each ends once it takes an experiment that is not its own.
    """
    started = False

    def follow(line: str) -> bool:
        nonlocal started
        if (match := _STARTED.search(line)) is None:
            return False
        foreign = match[1] != name or started
        if not foreign:
            started = True
            starting.close()
        return foreign

    with contextlib.ExitStack() as starting:
        starting.enter_context(_starting)
        command = ("--wait-for-lock", "exp", "run", "--temp", "--name", name)
        lines = dvc(*command, *arguments, log=log, environment=environment, stop_at=follow)
    return lines if started else []


def _require_attempts(name: str, attempts: int) -> None:
    """Refuse to start an experiment again and again that DVC never reports as started."""
    if attempts >= _ATTEMPTS:
        raise EffaceError(
            f'DVC did not run experiment {name!r} in {attempts} attempts: expected the line "Reproducing '
            f"experiment '{name}'\"; run the study again, or see what else uses dvc exp run --temp here"
        )


def run_name() -> str:
    """Name of a run in Prefect's lists."""
    try:
        params = load_params()
        methods = len(plan_of(params).methods)
    except EffaceError:
        return "study"  # which then fails with that error
    cells = f"{len(params.study.seeds)} seeds x {len(params.study.fold_numbers)} folds"
    return f"{methods} methods on {params.benchmark.name}, {cells}"


@flow(name="study", flow_run_name=run_name, task_runner=_RUNNER)
def study(workers: int | None = None) -> State[list[str]]:
    """Try the settings on the tuning seed, run every cell with those chosen, and compare; a line per cell.

    Args:
        workers: cells side by side; None: one per GPU and one more, or two on a processor.
    """
    with ending_with_flow():
        params = load_params()
        plan = plan_of(params)
        folds, seeds = params.study.fold_numbers, list(params.study.seeds)
        tuning = [
            Cell(params.study.tuning_seed, fold, setting)
            for fold in folds[: params.study.tuning_folds]
            for setting in range(plan.tried)
        ]
        tuning = tuning if plan.tried > 1 else []
        # One fold of every seed before the next, so that a study that is stopped early has as many of each.
        reported = [Cell(seed, fold) for fold in folds for seed in seeds]
        runs = Runs(params, plan, workers, len(tuning) + len(reported) + len(seeds) + bool(tuning))
        runs.start([Cell(seed) for seed in ([params.study.tuning_seed] if tuning else []) + seeds], {})
        selected = dict.fromkeys(plan.methods, 0)
        if tuning:
            runs.start(tuning, {})
            runs.wait(tuning)
            selected = comparison.choose(params, plan, runs.finished)
        runs.start(reported, selected)
        runs.wait(reported)
        if any(cell.setting is None for cell in runs.finished):
            comparison.run(params, plan, runs.finished, runs.unfinished())
            comparison.track(params, runs.finished)
        rows = runs.rows()
        publish(rows, title="study", page=comparison.PAGE)
        if unfinished := runs.unfinished():
            return Failed(message="\n".join(f"{title}: {reason}" for title, reason in unfinished.items()))
        return Completed(data=[f"{row.name}: {row.outcome}" for row in rows])


@dataclass
class Runs:
    """The tasks of the cells.

    Attributes:
        params: the whole file.
        plan: of the study.
        workers: how many run at once; None: as many as the devices allow.
        planned: how many cells the study has.
        finished: cells with results.
    """

    params: Params
    plan: StudyPlan
    workers: Any
    planned: int
    finished: list[Finished] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workers = self.workers or default_workers()
        self.slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._futures: dict[Cell, PrefectFuture[Any]] = {}
        self._left_out: dict[str, str] = {}
        self._seconds: list[float] = []
        self._ended = 0

    def start(self, cells: Sequence[Cell], selected: Mapping[str, int]) -> None:
        """Submit the cells, each after the base and vanilla model of its seed."""
        for cell in cells:
            reference = self._futures.get(Cell(cell.seed))
            work = work_of(cell, self.params, self.plan, selected)
            self._futures[cell] = run_cell.with_options(name=cell.title).submit(work, self, reference)

    def wait(self, cells: Sequence[Cell]) -> None:
        """Wait until these cells have ended."""
        for cell in cells:
            self._futures[cell].wait()

    def finish(self, cell: Cell, models: tuple[str, ...], seconds: float | None) -> str:
        """Record a finished cell; returns a line with the number finished and the time left."""
        with self._lock:
            self._ended += 1
            if cell.fold is not None:
                self.finished.append(
                    Finished(cell.title, cell.seed, cell.fold, cell.setting, models, cell.folder)
                )
                self._seconds += [] if seconds is None else [seconds]
            remaining = self.planned - self._ended
            minutes = fmean(self._seconds) * remaining / self.workers / 60 if self._seconds else None
        ahead = "" if minutes is None else f", about {minutes:.0f} minutes left"
        return f"study: {self._ended} of {self.planned} cells finished{ahead}"

    def leave_out(self, cell: Cell, methods: set[str], reason: str) -> None:
        """Record methods that failed in a cell."""
        with self._lock:
            self._left_out |= {f"{cell.title}, {method}": reason for method in sorted(methods)}

    def rows(self) -> list[Row]:
        """The outcome of each cell."""
        rows = []
        for cell, future in self._futures.items():
            future.wait()
            if future.state.is_completed():
                rows.append(future.result())
            else:
                rows.append(Row(cell.title, "not run" if future.state.is_pending() else "failed"))
        return rows

    def unfinished(self) -> dict[str, str]:
        """Cell, or method in a cell, to why it has no result."""
        failed = {
            cell.title: "the base or vanilla model of its seed failed"
            if future.state.is_pending()
            else str(future.state.message)
            for cell, future in self._futures.items()
            if not future.state.is_completed()
        }
        return failed | self._left_out


def main(
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Cells side by side; by default one per GPU and one more, or two."),
    ] = None,
) -> None:
    """Run the study that params.yaml describes; DVC restores what is finished."""
    try:
        plan_of(load_params())  # a mistake is reported at once, not after a server has started
        require_server()
        state = study(workers=workers, return_state=True)
        if not state.is_completed():
            raise EffaceError(str(state.message))
    except (EffaceError, RuntimeError) as error:  # RuntimeError: Prefect's temporary server does not start
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
