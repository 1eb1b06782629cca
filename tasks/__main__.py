"""Run one stage: python -m tasks STAGE [NAME]. DVC runs the same commands."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import EffaceError
from tasks.runtime import environment, forkserver, sharing, startup
from tasks.runtime.processes import leave_in_order

if TYPE_CHECKING:
    from tasks.config import Params

app = typer.Typer(
    help="Run one stage of the pipeline (normally `dvc repro` or `python -m flows.pipeline` does).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Argument(help="A name listed in params.yaml.")]


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Run one stage of the pipeline (normally `dvc repro` or `python -m flows.pipeline` does)."""
    environment.apply()
    if debug:
        os.environ["EFFACE_DEBUG"] = "1"


@app.command()
def params() -> None:
    """Check params.yaml and run nothing."""
    _run("params")


@app.command()
def benchmark() -> None:
    """Generate the embedded benchmark, or import a published one."""
    _run("benchmark")


@app.command()
def prepare() -> None:
    """Make one table of samples and its splits."""
    _run("prepare")


@app.command()
def base() -> None:
    """Train the base model."""
    _run("base")


@app.command()
def vanilla() -> None:
    """Fine-tune the base model on everybody."""
    _run("vanilla")


@app.command()
def retrained() -> None:
    """Fine-tune the base model on the retain people only."""
    _run("retrained")


@app.command()
def saliency() -> None:
    """Find the weights that matter for the forget set."""
    _run("saliency")


@app.command()
def control(mask: Name) -> None:
    """Make a control mask of the saliency mask's size."""
    _run("control", mask)


@app.command()
def importance() -> None:
    """Score every MLP neuron."""
    _run("importance")


@app.command()
def unlearn(method: Name) -> None:
    """Unlearn by training, with one method."""
    _run("unlearn", method)


@app.command()
def prune(method: Name) -> None:
    """Unlearn by switching neurons off, with one method."""
    _run("prune", method)


@app.command()
def evaluate(model: Name) -> None:
    """Ask one model everything."""
    _run("evaluate", model)


@app.command()
def attack(
    model: Name,
    only: Annotated[
        list[str] | None, typer.Option(help="This attack alone; may be given several times.")
    ] = None,
) -> None:
    """Try to bring back what one model was made to forget."""
    _run("attack", model, only=only or [])


@app.command()
def report() -> None:
    """Write data/report from all scores."""
    _run("report")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder, or a model under data/models.")],
) -> None:
    """Show what a model is made of and the memory it takes; no weights are loaded."""
    _run("inspect", model)


@app.command()
def track(
    quiet_if_unreachable: Annotated[
        bool,
        typer.Option(
            "--quiet-if-unreachable",
            help="Only say so when MLflow does not take the results; they stay on disk.",
        ),
    ] = False,
) -> None:
    """Send finished results to MLflow; what was sent before is not sent again."""
    _run("tracking.runs", quiet_if_unreachable=quiet_if_unreachable)


def _run(stage: str, name: str | None = None, **options: Any) -> None:
    """Check the parameters first; only then import the stage, which may take seconds, and run it.

    Where a fork server is at hand, all of this happens in a process that it forks.
    """
    with _errors_in_words():
        if not sharing.started_together():
            forkserver.hand_over(stage)
        with startup.uncollected():
            from tasks.config import load_params

            loaded = load_params()
        if name is not None:
            _must_be_listed(stage, name, loaded)
        for attack in options.get("only", ()):
            _must_be_listed("attack --only", attack, loaded)
        signal.signal(signal.SIGTERM, leave_in_order)  # unfinished files go, the device is free
        _end_with_starter()
        if sharing.shares(stage):
            sharing.start(sys.argv[1:])
        with sharing.joined():
            with startup.uncollected():
                startup.prepare(stage)
                module = importlib.import_module(f"tasks.{stage}")
            module.run(loaded, *([] if name is None else [name]), root=Path("data"), **options)


def _must_be_listed(stage: str, name: str, loaded: Params) -> None:
    from tasks.config.evaluation import ATTACKS

    listed = {
        "control": loaded.saliency.controls,
        "unlearn": loaded.unlearn.methods,
        "prune": loaded.prune.methods,
        "evaluate": loaded.evaluate.models,
        "attack": loaded.evaluate.models,
        "attack --only": ATTACKS,
    }
    if stage in listed and name not in listed[stage]:
        raise EffaceError(
            f"{stage} {name}: params.yaml lists no such name; expected one of: "
            f"{', '.join(listed[stage]) or 'none'}"
        )


def _end_with_starter() -> None:
    """Ask the kernel for SIGTERM when DVC or a launcher that started us dies: nothing stays on the device."""
    if "DVC_STAGE" in os.environ or sharing.started_together():
        from tasks.runtime.processes import end_with_parent

        end_with_parent(sharing.launcher())


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    """Our own errors end the program with their text alone; anything unforeseen keeps its traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("EFFACE_DEBUG"):
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if type(error).__name__ == "ParamsError" else 1) from None
    except Exception as error:
        from tasks.runtime.artifacts import disk_is_full

        if os.environ.get("EFFACE_DEBUG") or not disk_is_full(error):
            raise
        typer.echo(
            f"error: nothing more can be written ({error}); make room and run again: what was finished is "
            f"kept, "
            "and nothing half-written is in its place",
            err=True,
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    app()
