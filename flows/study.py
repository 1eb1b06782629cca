"""Many runs of the pipeline as one Prefect flow: python -m flows.study.

A cell is a combination of the seeds, fractions, methods and settings under `study` in params.yaml. It runs as
one DVC experiment: `dvc exp show` lists them, and `dvc exp apply NAME` brings one into the workspace. DVC's
run cache keeps a stage from being computed twice. A cell that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from efface.errors import EffaceError
from flows.commands import CommandFailed, dvc, ending_with_flow, outcome_of, query
from flows.devices import default_workers, device
from flows.server import require_server
from flows.summary import Row, publish
from tasks.config import REFERENCE_MODELS, Params, load_params
from tasks.runtime.sharing import process_count
from tasks.studies import comparison

FOLDER = Path(".study")
_UNFINISHED = ("failed", "not run")
_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


@dataclass(frozen=True)
class Cell:
    """One experiment: a seed and a fraction, and for these a method with its settings.

    Attributes:
        seed: draws people, weights and batches.
        fraction: share of the people to forget.
        method: a name in `unlearn.methods`, `prune.methods` or `study.methods`; None: the reference models.
        settings: values that replace the method's own.
    """

    seed: int
    fraction: float
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Method and settings, the same for all seeds: `npo, learning_rate 2e-05`."""
        return ", ".join([self.method or "reference models", *(f"{k} {v}" for k, v in self.settings.items())])

    @property
    def title(self) -> str:
        """The cell in tables and in Prefect."""
        return f"seed {self.seed}, forget {self.fraction:g}: {self.variant}"

    @property
    def name(self) -> str:
        """The name of the experiment in DVC: letters, digits, dots, dashes and underscores."""
        return re.sub(r"[^\w.-]+", "-", self.title).strip("-.")

    @property
    def folder(self) -> Path:
        """Where its score tables and run records are."""
        return FOLDER / self.name

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose attacks are compared."""
        return (self.method,) if self.method else ("vanilla", "retrained")

    def summary(self) -> dict[str, Any]:
        """The cell as the comparison reads it."""
        cell: dict[str, Any] = {"seed": self.seed, "fraction": self.fraction, "method": self.method}
        return cell | {"variant": self.variant, "folder": self.folder.as_posix()}


def cells_of(params: Params) -> list[Cell]:
    """All cells of the study: the reference models of every seed and fraction, then the methods."""
    study = params.study
    methods = [*params.unlearn.methods, *study.methods, *params.prune.methods]
    fractions = study.fractions or [params.split.forget_fraction]
    references = [Cell(seed, fraction) for seed, fraction in itertools.product(study.seeds, fractions)]
    return references + [
        Cell(reference.seed, reference.fraction, method, settings)
        for reference in references
        for method in methods
        for settings in _combinations(study.grid.get(method, {}))
    ]


def is_tuned(cell: Cell, params: Params) -> bool:
    """Whether the cell's settings are one of several combinations to select from."""
    grid = params.study.grid.get(cell.method or "", {})
    return math.prod(map(len, grid.values())) > 1


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def overrides(cell: Cell, params: Params) -> list[str]:
    """What the cell changes in params.yaml, as ``dvc exp run --set-param`` takes it."""
    values: dict[str, Any] = {
        "seed": cell.seed,
        "avatars.seed": cell.seed,
        "split.forget_fraction": cell.fraction,
    }
    removed: list[str] = []
    if cell.method is not None:
        kind = "prune" if cell.method in params.prune.methods else "unlearn"
        if entry := params.study.methods.get(cell.method):
            removed = ["~study"]  # a method is named once; DVC writes broken YAML for an emptied mapping
            for key, value in entry.model_dump(mode="json", exclude_unset=True).items():
                values[f"unlearn.methods.{cell.method}.{key}"] = value
        values |= {f"{kind}.methods.{cell.method}.{key}": value for key, value in cell.settings.items()}
    if params.study.attacks:
        values["attack.models"] = list(cell.models)
    return removed + [f"++{key}={json.dumps(value)}" for key, value in values.items()]


def targets(cell: Cell, params: Params, attacks: bool) -> list[str]:
    """Stages that the cell brings up to date; what several methods read is made with the reference models."""
    if cell.method is not None:
        extra = cell.method in params.study.methods
        stages = [f"evaluate_unlearned@{cell.method}" if extra else params.evaluation_of(cell.method)]
    else:
        methods = params.unlearn.methods | params.study.methods
        masks = sorted({method.mask for method in methods.values()} - {"none", "retain_statistic"})
        stages = [f"evaluate@{name}" for name in REFERENCE_MODELS]
        stages += [mask if mask == "saliency" else f"control@{mask}" for mask in masks]
        stages += ["importance"] if params.prune.methods else []
    return stages + ([f"attack@{name}" for name in cell.models] if attacks else [])


def results_of(cell: Cell, stages: Sequence[str]) -> list[str]:
    """Files of the experiment that the comparison reads; `dvc get` takes them one by one.

    `dvc get` of a whole folder fails: dvc.yaml has more stages than the cell runs.
    """
    models = REFERENCE_MODELS if cell.method is None else (cell.method,)
    attacked = [model for model in models if f"attack@{model}" in stages]
    tables = [f"data/scores/{model}" for model in models] + [f"data/attacks/{model}" for model in attacked]
    if cell.method is None:
        records = [*REFERENCE_MODELS, *(stage for stage in stages if "evaluate" not in stage)]
    else:
        kind = "prune" if stages[0].startswith("evaluate_pruned") else "unlearn"
        records = [f"{kind}@{cell.method}", *(f"attack@{model}" for model in attacked)]
    return [f"{table}{suffix}" for table in tables for suffix in (".parquet", ".json")] + [
        f"data/runs/{record}.json" for record in records
    ]


@task(task_run_name="{cell.title}", cache_policy=NO_CACHE, persist_result=False)
def run_cell(cell: Cell, stages: list[str], changes: list[str], runs: Runs, reference: Any) -> State[Row]:
    """Run a cell's experiment and fetch its results; `reference` is the row of its reference models."""
    log, started = get_run_logger(), time.monotonic()
    settings = [word for change in changes for word in ("--set-param", change)]
    try:
        with runs.slots, device(processes=process_count(), workers=runs.workers) as environment:
            with contextlib.suppress(CommandFailed):  # there may be no earlier one of that name
                query("--wait-for-lock", "exp", "remove", cell.name)
            lines = dvc(
                *("--wait-for-lock", "exp", "run", "--temp", "--name", cell.name, *settings, *stages),
                log=log.info,
                environment=environment,
            )
            for path in results_of(cell, stages):
                copy = cell.folder / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                query("get", "--force", "--rev", cell.name, "--out", str(copy), ".", path)
    except EffaceError as error:
        return Failed(message=str(error))
    outcome = outcome_of(lines)
    return Completed(
        name="Completed" if outcome == "ran" else outcome.capitalize(),
        data=Row(cell.title, outcome, time.monotonic() - started),
    )


@flow(name="study", task_runner=_RUNNER)
def study(workers: int | None = None) -> State[list[str]]:
    """Run every cell, then compare them; returns one line per cell.

    Args:
        workers: cells side by side; None: one per GPU and one more, or two on a processor.
    """
    with ending_with_flow():
        params = load_params()
        runs, cells, attacks = Runs(params, workers), cells_of(params), params.study.attacks
        tuned = [cell for cell in cells if is_tuned(cell, params)]
        tuning = params.study.seeds[: params.study.tuning_seeds]
        runs.start([cell for cell in cells if cell not in tuned], attacks)
        runs.start([cell for cell in tuned if cell.seed in tuning], attacks=False)
        choices = comparison.choices(params, runs.finished())
        selected = [cell for cell in tuned if choices.get((cell.fraction, str(cell.method))) == cell.variant]
        runs.start([cell for cell in selected if attacks or cell.seed not in tuning], attacks)
        finished, unfinished = runs.finished(), runs.unfinished()
        if finished:
            comparison.run(params, finished, unfinished)
            comparison.track(params, finished)
        rows = list(runs.rows().values())
        publish(rows, title="study", page=comparison.PAGE)
        if unfinished:
            return Failed(message="\n".join(f"{title}: {reason}" for title, reason in unfinished.items()))
        return Completed(data=[f"{row.name}: {row.outcome}" for row in rows])


class Runs:
    """The tasks of the cells, by title.

    Args:
        params: the whole file.
        workers: how many run at once; None: as many as the devices allow.
    """

    def __init__(self, params: Params, workers: int | None) -> None:
        self.workers = workers or default_workers()
        self.slots = threading.Semaphore(self.workers)
        self._params = params
        self._cells: dict[str, Cell] = {}
        self._futures: dict[str, PrefectFuture[Any]] = {}

    def start(self, cells: Sequence[Cell], attacks: bool) -> None:
        """Submit the cells, each after the reference models of its seed and fraction."""
        for cell in cells:
            reference = None if cell.method is None else self._futures[Cell(cell.seed, cell.fraction).title]
            stages, changes = targets(cell, self._params, attacks), overrides(cell, self._params)
            self._cells[cell.title] = cell
            self._futures[cell.title] = run_cell.with_options(name=cell.variant).submit(
                cell, stages, changes, self, reference
            )

    def rows(self) -> dict[str, Row]:
        """Wait for all; title to row."""
        rows = {}
        for title, future in self._futures.items():
            future.wait()
            if future.state.is_completed():
                rows[title] = future.result()
            else:
                rows[title] = Row(title, "not run" if future.state.is_pending() else "failed")
        return rows

    def finished(self) -> dict[str, Mapping[str, Any]]:
        """The cells with results, for the comparison."""
        rows = self.rows()
        return {t: cell.summary() for t, cell in self._cells.items() if rows[t].outcome not in _UNFINISHED}

    def unfinished(self) -> dict[str, str]:
        """Title to why the cell has no result."""
        return {
            title: str(self._futures[title].state.message)
            if row.outcome == "failed"
            else "its reference models failed"
            for title, row in self.rows().items()
            if row.outcome in _UNFINISHED
        }


def main(
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Cells side by side; by default one per GPU and one more, or two."),
    ] = None,
) -> None:
    """Run the study that params.yaml describes; DVC restores what is finished."""
    try:
        load_params()  # a mistake is reported at once, not after a server has started
        require_server()
        state = study(workers=workers, return_state=True)
        if not state.is_completed():
            raise EffaceError(str(state.message))
    except (EffaceError, RuntimeError) as error:  # RuntimeError: Prefect's temporary server does not start
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
