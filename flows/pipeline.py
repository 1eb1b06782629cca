"""The whole pipeline as one Prefect flow: python -m flows.pipeline.

Stages that DVC calls current are Cached; the others run through DVC, side by side where the device allows.
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from tasks.runtime import environment
from tasks.runtime.startup import uncollected

environment.apply()  # before Prefect is imported: it reads its settings then
with uncollected():
    from prefect import State, flow
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.states import Failed
    from prefect.task_runners import ThreadPoolTaskRunner

    from efface.errors import EffaceError
    from flows.children import interrupted
    from flows.running import note
    from flows.server import require_server
    from flows.stages import Stages
    from flows.watcher import watch_over_this_process
    from tasks.config import load_params

# One thread per stage that waits for another; how many compute at once is `workers`.
_RUNNER = ThreadPoolTaskRunner(max_workers=64)


@flow(name="pipeline", task_runner=_RUNNER, result_serializer="json", on_running=[note])
def pipeline(workers: int | None = None, target: str | None = None) -> State[list[str]]:
    """Make everything, or what `target` needs; returns one line per stage.

    Args:
        workers: stages side by side; None: one per GPU and one more, or two on a processor.
        target: a stage of dvc.yaml; None: all of them.
    """
    try:
        params, stages = load_params(), Stages(workers, target)
    except EffaceError as error:
        return Failed(message=str(error))
    with stages as run:
        people = run("benchmark", run("params"))
        table = run("prepare", people)
        base = run("base", people, table)
        vanilla = run("vanilla", table, base)
        retrained = run("retrained", table, base)
        masks = {"saliency": run("saliency", table, vanilla)}
        for name in params.saliency.controls:
            masks[name] = run(f"control@{name}", table, vanilla, masks["saliency"])
        neurons = run("importance", table, vanilla)
        models = {"base": base, "vanilla": vanilla, "retrained": retrained}
        for name in params.prune.methods:
            models[f"unlearned/{name}"] = run(f"prune@{name}", table, vanilla, neurons)
        for name, method in params.unlearn.methods.items():  # each starts from a model made before it
            models[f"unlearned/{name}"] = run(
                f"unlearn@{name}", table, models[method.start], masks.get(method.mask)
            )
        scores = [
            run(params.evaluation_of(name), table, models[folder]) for name, folder in params.models.items()
        ]
        attacks = [
            run(f"attack@{name}", table, vanilla, models[params.models[name]])
            for name in params.attack.models
        ]
        run("report", table, *masks.values(), neurons, *models.values(), *scores, *attacks)
    return run.verdict


def main(
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Stages side by side; by default one per GPU and one more, or two."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Stop after this stage of dvc.yaml.")] = None,
) -> None:
    """Run the pipeline; what is current is not run again."""
    try:
        load_params()  # a mistake is told at once, not after a server has started
        require_server()
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    watch_over_this_process()
    signal.signal(signal.SIGINT, interrupted)
    with _without_heartbeat():
        state = pipeline(workers=workers, target=target, return_state=True)
    if not state.is_completed():
        typer.echo(f"error: {state.message}", err=True)
        raise typer.Exit(1)


def _without_heartbeat() -> AbstractContextManager[object]:
    """Prefect's heartbeat holds a finished flow for up to a second; a run from a terminal needs none."""
    if PREFECT_FLOWS_HEARTBEAT_FREQUENCY.name in os.environ:  # somebody watches for it
        return nullcontext()
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


if __name__ == "__main__":
    typer.run(main)
