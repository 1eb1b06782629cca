"""Run one stage: python -m tasks STAGE [NAME]. DVC runs the same commands."""

import contextlib
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.config.stages import STAGES, Stage
from tasks.runtime import environment, sharing

if TYPE_CHECKING:
    from tasks.config import Params

_EXAMPLES = "\n\n".join(
    (
        "`python -m tasks use quick`: small models, for the whole chain in minutes; `use laptop` goes back.",
        "`dvc repro`: every stage that is not current, in order.",
        "`python -m tasks unlearn npo`: one stage by hand, whether current or not.",
        "`python -m tasks inspect vanilla`: a model's parts, and the memory of each kind of work.",
        "First steps: docs/tutorial/first-run.md. Parameters: params.yaml and docs/reference/parameters.md. "
        "Results: docs/reference/files.md.",
    )
)
_NAMES = {
    "mask": "A control mask of `saliency.controls`: random or magnitude.",
    "method": "A method of `{stage}.methods`.",
    "model": "base, vanilla, retrained, or a method of `unlearn.methods` or `prune.methods`.",
}
app = typer.Typer(
    help="Run one stage of the pipeline; `dvc repro` and `python -m flows.pipeline` run them all.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ROOT = Path("data")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal to get when the parent dies


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run one stage of the pipeline; `dvc repro` and `python -m flows.pipeline` run them all."""
    environment.apply()
    if sys.platform == "linux":  # a stage ends with the DVC that started it, and frees its GPU
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if debug:
        os.environ["EFFACE_DEBUG"] = "1"


def _add_command(stage: Stage) -> None:
    def once() -> None:
        _run_stage(stage, None)

    about = "base or vanilla." if stage.name == "score" else _NAMES.get(stage.per or "", "")

    def per_name(name: Annotated[str, typer.Argument(help=about.format(stage=stage.name))]) -> None:
        _run_stage(stage, name)

    app.command(
        stage.name,
        help=stage.summary,
        epilog=f"What it reads and writes: `{stage.dvc[0]}` in dvc.yaml. Its parameters: params.yaml.",
        rich_help_panel="Stages",
    )(per_name if stage.per else once)


for _stage in STAGES.values():
    _add_command(_stage)


@app.command()
def use(
    profile: Annotated[
        str,
        typer.Argument(
            help="Name of a file in profiles/, such as quick or laptop, or the path of a settings file."
        ),
    ],
) -> None:
    """Write a profile, or the settings that a study chose, into params.yaml; comments stay."""
    with _short_errors():
        from tasks.config import use_profile

        use_profile(profile)
    typer.echo(f"params.yaml now holds profile {profile}")


@app.command("inspect")
def inspect_model(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder, or a model under data/models.")],
) -> None:
    """Show a model's parts and the memory that each kind of work needs, without loading weights."""
    with _short_errors():
        from tasks.config import load_params
        from tasks.runtime import inspect

        inspect.run(load_params(), model, root=ROOT)


@app.command("retain-statistic")
def retain_statistic() -> None:
    """Measure vanilla on the retain set once, for `mask: retain_statistic`."""
    with _short_errors():
        from tasks import retain_statistic
        from tasks.config import load_params

        retain_statistic.run(load_params(), root=ROOT)


@app.command()
def track(
    quiet_if_unreachable: Annotated[
        bool,
        typer.Option(
            "--quiet-if-unreachable", help="If MLflow is unreachable, print one line instead of failing."
        ),
    ] = False,
) -> None:
    """Send finished results that MLflow lacks."""
    with _short_errors():
        from tasks.config import load_params
        from tasks.tracking.runs import run

        run(load_params(), root=ROOT, quiet_if_unreachable=quiet_if_unreachable)


@app.command()
def rescore(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of score tables <model>.parquet, those of base, vanilla and retrained included."
        ),
    ],
) -> None:
    """Compute all metrics of score tables again, without a model, even of earlier versions' tables."""
    with _short_errors():
        from tasks import rescore

        rescore.run(folder)


def _run_stage(stage: Stage, name: str | None) -> None:
    """Check the parameters, then import the stage's module and run it."""
    with _short_errors():
        from tasks.config import load_params
        from tasks.config.stages import names_of

        params = load_params()
        if name is not None and name not in names_of(stage, params):
            raise ValueError(
                f"{stage.per} is {name!r}: expected one of: {', '.join(names_of(stage, params)) or '(none)'}"
            )
        if sharing.processes_of(stage.name) > 1 and not sharing.launched():
            sharing.launch(sys.argv[1:])
        with sharing.joined(stage.name):
            run = importlib.import_module(f"tasks.{stage.module}").run
            arguments = [stage.name] if stage.module != stage.name else [name] if name else []
            run(params, *arguments, root=ROOT)
        _print_remaining(params)


def _print_remaining(params: "Params") -> None:
    """Print one line on the rest of the run; damaged records are left to the stage that reads them."""
    from ruamel.yaml import YAMLError

    from efface.errors import ArtifactError
    from tasks.runtime.progress import remaining

    with contextlib.suppress(ArtifactError, YAMLError, KeyError, TypeError):
        if line := remaining(params, ROOT):
            typer.echo(line)


def _memory_is_full(error: Exception) -> bool:
    """Whether Python, or torch on a processor or a GPU, was refused memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("out of memory", "can't allocate memory"))
    )


@contextlib.contextmanager
def _short_errors() -> Iterator[None]:
    """Print a foreseen error as its message alone; any other keeps its traceback."""
    try:
        yield
    except Exception as error:
        from tasks.runtime.artifacts import disk_is_full

        foreseen = isinstance(error, (ValueError, FileNotFoundError))
        if os.environ.get("EFFACE_DEBUG") or not (foreseen or disk_is_full(error) or _memory_is_full(error)):
            raise
        message = str(error)
        if _memory_is_full(error):
            message = (
                f"out of memory ({' '.join(message.split())[:200] or type(error).__name__}); lower "
                "batch_size, or set gradient_checkpointing or unlearn.lora; `python -m tasks inspect MODEL` "
                "estimates what each kind of work needs"
            )
        if disk_is_full(error):
            message += "; make room and run again: finished stages are kept, half-written files are not"
        typer.echo(f"error: {message}", err=True)
        raise SystemExit(2 if type(error).__name__ == "ParamsError" else 1) from None


if __name__ == "__main__":
    app()
