"""Many runs of the pipeline as one Prefect flow: python -m flows.study.

Methods, fractions, seeds and settings are those of `study` in params.yaml. Every combination is a cell: a DVC
project in `.study/` that shares this project's cache, so a finished cell is never computed again, wherever it
was computed first. A cell that fails leaves the others alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from tasks.runtime import environment
from tasks.runtime.startup import uncollected

environment.apply()  # before Prefect is imported: it reads its settings then
with uncollected():
    from prefect import State, flow, get_run_logger, task
    from prefect.futures import PrefectFuture
    from prefect.runtime import flow_run
    from prefect.states import Completed, Failed

    from efface.errors import EffaceError
    from flows.children import StageFailed, interrupted, reproduce, terminate_all
    from flows.devices import default_workers, device
    from flows.ledger import Ledger
    from flows.runners import runner, running_on
    from flows.running import note
    from flows.server import require_server
    from flows.summary import Row, publish
    from flows.watcher import watch_over_this_process
    from flows.workspaces import Cell, cells_of, first_round, prepare
    from tasks.config import REFERENCE_MODELS, Params, load_params
    from tasks.runtime.sharing import process_count
    from tasks.studies import comparison as results

_UNFINISHED = ("failed", "not run")
_MASKS = {"saliency": "saliency", "random": "control@random", "magnitude": "control@magnitude"}
_Future = PrefectFuture[Any]
_Stages = Callable[[str | None], list[str]]


@task(task_run_name="{name}", persist_result=False)
def run_cell(name: str, folder: str, stages: list[str], workers: int, world: Any) -> State[dict[str, Any]]:
    """Bring a cell's stages up to date; `world` is what the yardsticks' task returned."""
    log, started = get_run_logger(), time.monotonic()
    try:
        with device(gpu=True, workers=workers, processes=process_count()) as granted:
            outcome = reproduce(
                stages, granted, log.info, folder=folder, upstream=True, flow_run_id=str(flow_run.get_id())
            )
    except StageFailed as error:
        return Failed(message=str(error))
    done = {"outcome": outcome, "seconds": time.monotonic() - started}
    return Completed(name={"ran": "Completed"}.get(outcome, outcome.capitalize()), data=done)


@flow(name="study", result_serializer="json", on_running=[note])
def study(workers: int) -> State[list[str]]:
    """Run every cell, then compare them; returns one line per cell."""
    try:
        params = load_params()
        with running_on(runner(params.study.runner, workers)):
            return _compared(params, workers)
    except EffaceError as error:
        return Failed(message=str(error))


def _compared(params: Params, workers: int) -> State[list[str]]:
    cells = cells_of(params)
    first = first_round(cells, params)
    stages = _stages(params, Ledger.open())
    futures = _submit(first, params, stages, workers, {})
    done = {cell.name: _row(cell.name, futures[cell.name]) for cell in first}
    chosen = results.chosen(params, _finished(first, done))
    second = [c for c in cells if c not in first and chosen.get((c.fraction, c.method)) == c.variant]
    futures |= _submit(second, params, stages, workers, futures)
    rows = {cell.name: done.get(cell.name) or _row(cell.name, futures[cell.name]) for cell in first + second}
    finished = _finished(first + second, rows)
    if params.study.attacks:
        reported = [
            cell
            for cell in first + second
            if cell.name in finished
            and chosen.get((cell.fraction, cell.method), cell.variant) == cell.variant
        ]
        attacks = _attack(reported, workers)
        futures |= attacks
        rows |= {name: _row(name, future) for name, future in attacks.items()}
    unfinished = {
        name: str(futures[name].state.message) if row.outcome == "failed" else "its yardsticks failed"
        for name, row in rows.items()
        if row.outcome in _UNFINISHED
    }
    if finished:
        results.run(params, finished, unfinished)
        results.track(finished)
    publish(list(rows.values()), title="study", page=results.PAGE)
    if unfinished:
        return Failed(message="\n".join(f"{name}: {reason}" for name, reason in unfinished.items()))
    return Completed(data=[f"{name}: {row.outcome}" for name, row in rows.items()])


def _submit(
    cells: Sequence[Cell], params: Params, stages: _Stages, workers: int, worlds: Mapping[str, _Future]
) -> dict[str, _Future]:
    """One task per cell, each after its world's, which is among the cells or in `worlds`."""
    # All are checked before one runs. A cluster's workers may stand elsewhere.
    folders = {cell.name: str(prepare(cell, params).resolve()) for cell in cells}
    futures: dict[str, _Future] = {}
    for cell in cells:
        upstream = None if cell.method is None else {**worlds, **futures}[cell.world.name]
        futures[cell.name] = run_cell.with_options(name=cell.variant).submit(
            cell.name, folders[cell.name], stages(cell.method), workers, upstream
        )
    return futures


def _attack(cells: Sequence[Cell], workers: int) -> dict[str, _Future]:
    """One task per cell that attacks its model; a world's attacks its vanilla and retrained models."""
    return {
        f"{cell.name}, attacked": run_cell.with_options(name=f"{cell.variant}, attacked").submit(
            f"{cell.name}, attacked",
            str(cell.folder),
            [f"attack@{name}" for name in cell.attacked],
            workers,
            None,
        )
        for cell in cells
    }


def _finished(cells: Sequence[Cell], rows: Mapping[str, Row]) -> dict[str, Mapping[str, Any]]:
    return {cell.name: _described(cell) for cell in cells if rows[cell.name].outcome not in _UNFINISHED}


def _stages(params: Params, ledger: Ledger) -> _Stages:
    """What each cell brings up to date. What several methods read, such as the mask, is made in its world."""
    extra = params.study.methods
    methods = [*params.unlearn.methods, *params.prune.methods]
    own = {f"{kind}@{name}" for name in methods for kind in ("unlearn", "prune", "evaluate")}
    needed = set[str]().union(*(ledger.upstream(f"evaluate@{name}") for name in methods))
    needed |= {_MASKS[method.mask] for method in extra.values() if method.mask in _MASKS}
    shared = sorted({params.evaluation_of(name) for name in REFERENCE_MODELS} | (needed - own))
    return lambda method: shared if method is None else [f"evaluate@{method}"]


def _row(name: str, future: PrefectFuture[Any]) -> Row:
    future.wait()
    state = future.state
    if state.is_pending():  # its world failed
        return Row(name)
    if not state.is_completed():
        return Row(name, "failed")
    done = future.result()
    return Row(name, done["outcome"], done["seconds"])


def _described(cell: Cell) -> Mapping[str, Any]:
    return {
        "seed": cell.seed,
        "fraction": cell.fraction,
        "method": cell.method,
        "variant": cell.variant,
        "folder": cell.folder.as_posix(),
    }


def main(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells side by side; by default one per GPU, or two.")
    ] = None,
) -> None:
    """Run the study that params.yaml describes; what is finished is not run again."""
    watch_over_this_process()
    signal.signal(signal.SIGINT, interrupted)
    count = workers or default_workers()
    try:
        require_server()
        runner(load_params().study.runner, count)  # a mistake is told at once, not after a server has started
        state = study(count, return_state=True)
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    finally:
        terminate_all()
    if not state.is_completed():
        typer.echo(f"error: {state.message}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
