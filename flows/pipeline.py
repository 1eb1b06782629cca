"""The whole pipeline as one Prefect flow: python -m flows.pipeline.

A stage that DVC calls current is Cached; the others run through DVC, side by side where the device allows.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from prefect import State, flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from efface.errors import EffaceError
from flows.commands import ending_with_flow
from flows.server import require_server
from flows.stages import Stages
from tasks.config import load_params

# A thread per stage that waits for another; how many compute at once is `workers`.
_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


def run_name() -> str:
    """Name of a run in Prefect's lists."""
    try:
        params = load_params()
    except EffaceError:
        return "pipeline"  # which then fails with that error
    return f"{params.benchmark.name}, base {params.base.source}, seed {params.seed}"


@flow(name="pipeline", flow_run_name=run_name, task_runner=_RUNNER)
def pipeline(workers: int | None = None, target: str | None = None) -> State[list[str]]:
    """Bring everything up to date, or what `target` needs; returns one line per stage.

    Args:
        workers: stages side by side; None: one per GPU and one more, or two on a processor.
        target: a stage of dvc.yaml; None: all of them.
    """
    with ending_with_flow():
        params, run = load_params(), Stages(workers, target)
        benchmark = run("benchmark", run("params"))
        table = run("prepare", benchmark)
        base = run("base", benchmark, table)
        vanilla = run("vanilla", table, base)
        answers = {
            "base": run("score@base", table, base),
            "vanilla": run("score@vanilla", table, base, vanilla),
        }
        samples = (table, run("split", table))
        retrained = run("retrained", *samples, base)
        masks = {"saliency": run("saliency", *samples, vanilla)}
        for control in params.saliency.controls:
            masks[control] = run(f"control@{control}", *samples, vanilla, masks["saliency"])
        importance = run("importance", *samples, vanilla)
        models = {"base": base, "vanilla": vanilla, "retrained": retrained}
        for name in params.prune.methods:
            models[f"unlearned/{name}"] = run(f"prune@{name}", *samples, vanilla, importance)
        for name, method in params.unlearn.methods.items():  # a method may start from an earlier one's model
            models[f"unlearned/{name}"] = run(
                f"unlearn@{name}", *samples, models[method.start], masks.get(method.mask)
            )
        scores = {
            name: run(params.evaluation_of(name), *samples, models[folder], answers.get(name, base))
            for name, folder in params.models.items()
        }
        attacks = [
            run(f"attack@{name}", *samples, base, vanilla, scores[name]) for name in params.attack.models
        ]
        others = [run(f"lmms_eval@{name}", scores[name]) for name in params.lmms_eval.models]
        results = [*masks.values(), importance, *models.values(), *answers.values(), *scores.values()]
        run("report", *samples, *results, *attacks, *others)
        return run.finish()


def main(
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Stages side by side; by default one per GPU and one more, or two."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Stop after this stage of dvc.yaml.")] = None,
) -> None:
    """Run the pipeline; what is current is not run again."""
    try:
        load_params()  # a mistake is reported at once, not after a server has started
        require_server()
        state = pipeline(workers=workers, target=target, return_state=True)
        if not state.is_completed():
            raise EffaceError(str(state.message))
    except (EffaceError, RuntimeError) as error:  # RuntimeError: Prefect's temporary server does not start
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
