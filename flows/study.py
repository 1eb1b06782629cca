"""Many runs of the pipeline as one Prefect flow: python -m flows.study.

A cell is a combination of the seeds, fractions, methods and settings under `study` in params.yaml. It runs as
one DVC experiment: `dvc exp show` lists them, and `dvc exp apply NAME` brings one into the workspace. DVC's
run cache keeps a stage from being computed twice. A cell that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        return re.sub(r"[^\w.-]+", "-", f"seed-{self.seed}-forget-{self.fraction:g}-{self.variant}").strip(
            "-."
        )

    @property
    def folder(self) -> Path:
        """Where its score tables and run records are."""
        return FOLDER / self.name

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose attacks are compared."""
        return (self.method,) if self.method else ("vanilla", "retrained")

    def described(self) -> dict[str, Any]:
        """The cell as the comparison reads it."""
        return {
            "seed": self.seed,
            "fraction": self.fraction,
            "method": self.method,
            "variant": self.variant,
            "folder": self.folder.as_posix(),
        }


def cells_of(params: Params) -> list[Cell]:
    """All cells of the study: the reference models of every seed and fraction, then the methods."""
    study = params.study
    methods = [*params.unlearn.methods, *study.methods, *params.prune.methods]
    fractions = study.fractions or [params.prepare.forget_fraction]
    references = [Cell(seed, fraction) for seed, fraction in itertools.product(study.seeds, fractions)]
    return references + [
        Cell(reference.seed, reference.fraction, method, settings)
        for reference in references
        for method in methods
        for settings in _combinations(study.grid.get(method, {}))
    ]


def first_round(cells: Sequence[Cell], params: Params) -> list[Cell]:
    """The cells to run before settings are selected: all but the grids of seeds that are not for tuning."""
    tuning = params.study.seeds[: params.study.tuning_seeds]
    variants = Counter((cell.seed, cell.fraction, cell.method) for cell in cells)
    return [c for c in cells if c.seed in tuning or variants[c.seed, c.fraction, c.method] == 1]


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def overrides(cell: Cell, params: Params) -> list[str]:
    """What the cell changes in params.yaml, as ``dvc exp run --set-param`` takes it."""
    values: dict[str, Any] = {
        "seed": cell.seed,
        "avatars.seed": cell.seed,
        "prepare.forget_fraction": cell.fraction,
    }
    removed = []
    if cell.method is not None:
        kind = "prune" if cell.method in params.prune.methods else "unlearn"
        if entry := params.study.methods.get(cell.method):
            removed.append(f"~study.methods.{cell.method}")
            for key, value in entry.model_dump(mode="json", exclude_unset=True).items():
                values[f"unlearn.methods.{cell.method}.{key}"] = value
        values |= {f"{kind}.methods.{cell.method}.{key}": value for key, value in cell.settings.items()}
    if params.study.attacks:
        values["attack.models"] = list(cell.models)
    return removed + [f"++{key}={json.dumps(value)}" for key, value in values.items()]


def targets(cell: Cell, params: Params) -> list[str]:
    """Stages that the cell brings up to date; what several methods read is made with the reference models."""
    if cell.method in params.study.methods:
        return [f"evaluate_unlearned@{cell.method}"]
    if cell.method is not None:
        return [params.evaluation_of(cell.method)]
    masks = {method.mask for method in (params.unlearn.methods | params.study.methods).values()} - {"none"}
    stages = [f"evaluate@{name}" for name in REFERENCE_MODELS]
    stages += [mask if mask == "saliency" else f"control@{mask}" for mask in sorted(masks)]
    return stages + (["importance"] if params.prune.methods else [])


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


@task(task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def run_cell(
    title: str, cell: Cell, stages: list[str], changes: list[str], slots: Slots, reference: Any
) -> State[Row]:
    """Run a cell's experiment and fetch its tables; `reference` is the row of its reference models."""
    log, started = get_run_logger(), time.monotonic()
    settings = [word for change in changes for word in ("--set-param", change)]
    try:
        with slots.free, device(processes=process_count(), workers=slots.workers) as environment:
            with contextlib.suppress(CommandFailed):  # there may be no earlier one of that name
                query("--wait-for-lock", "exp", "remove", cell.name)
            lines = dvc(
                "--wait-for-lock", "exp", "run", "--temp", "--name", cell.name, *settings, *stages,
                log=log.info, environment=environment,
            )  # fmt: skip
            for path in results_of(cell, stages):
                copy = cell.folder / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                query("get", "--force", "--rev", cell.name, "--out", str(copy), ".", path)
    except (CommandFailed, EffaceError) as error:
        return Failed(message=str(error))
    outcome = outcome_of(lines)
    return Completed(
        name="Completed" if outcome == "ran" else outcome.capitalize(),
        data=Row(title, outcome, time.monotonic() - started),
    )


class Slots:
    """How many cells run at once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.free = threading.Semaphore(workers)


@flow(name="study", task_runner=_RUNNER)
def study(workers: int | None = None) -> State[list[str]]:
    """Run every cell, then compare them; returns one line per cell.

    Args:
        workers: cells side by side; None: one per GPU and one more, or two on a processor.
    """
    with ending_with_flow():
        params, slots = load_params(), Slots(workers or default_workers())
        cells = cells_of(params)
        first = first_round(cells, params)
        run = _Runs(params, slots)
        run.start(first, lambda cell: targets(cell, params))
        choices = comparison.choices(params, run.finished())
        second = [
            c for c in cells if c not in first and choices.get((c.fraction, c.method or "")) == c.variant
        ]
        run.start(second, lambda cell: targets(cell, params))
        if params.study.attacks:
            finished = run.finished()
            run.start(
                [
                    cell
                    for cell in first + second
                    if cell.title in finished
                    and choices.get((cell.fraction, cell.method or ""), cell.variant) == cell.variant
                ],
                lambda cell: [*targets(cell, params), *(f"attack@{name}" for name in cell.models)],
                suffix=", attacks",
            )
        finished, unfinished = run.finished(), run.unfinished()
        if finished:
            comparison.run(params, finished, unfinished)
            comparison.track(params, finished)
        publish(list(run.rows().values()), title="study", page=comparison.PAGE)
        if unfinished:
            return Failed(message="\n".join(f"{name}: {reason}" for name, reason in unfinished.items()))
        return Completed(data=[f"{name}: {row.outcome}" for name, row in run.rows().items()])


class _Runs:
    """The tasks of the cells that were started, by title."""

    def __init__(self, params: Params, slots: Slots) -> None:
        self._params, self._slots = params, slots
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._cells: dict[str, Cell] = {}

    def start(self, cells: Sequence[Cell], stages: Callable[[Cell], list[str]], suffix: str = "") -> None:
        """Submit the cells, each after the reference models of its seed and fraction."""
        for cell in cells:
            reference = None if cell.method is None else self._futures[Cell(cell.seed, cell.fraction).title]
            title = cell.title + suffix
            self._cells[title] = cell
            self._futures[title] = run_cell.with_options(name=cell.variant + suffix).submit(
                title, cell, stages(cell), overrides(cell, self._params), self._slots, reference
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
        """The cells whose scores there are, for the comparison."""
        return {
            title: self._cells[title].described()
            for title, row in self.rows().items()
            if row.outcome not in ("failed", "not run") and title == self._cells[title].title
        }

    def unfinished(self) -> dict[str, str]:
        """Title to why the cell has no result."""
        return {
            title: str(self._futures[title].state.message)
            if row.outcome == "failed"
            else "its reference models failed"
            for title, row in self.rows().items()
            if row.outcome in ("failed", "not run")
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
