"""Stage lmms_eval: score one model on published benchmarks with lmms-eval."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.errors import EffaceError
from tasks.config import Params
from tasks.runtime.artifacts import digest, recording, write_json
from tasks.runtime.memory import require_memory


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write `lmms_eval/<name>.json`; `python -m tasks track` sends its numbers to MLflow.

    Raises:
        EffaceError: if lmms-eval is not installed.
    """
    from efface.models import load_model

    try:
        from efface.evaluation.lmms import run_benchmarks
    except ModuleNotFoundError as error:
        raise EffaceError(
            f"lmms_eval needs the extra `lmms` ({error}): in an environment of its own, "
            "pip install -e '.[pipeline,lmms]'"
        ) from error

    section, folder = params.lmms_eval, root / "models" / params.models[name]
    path = root / "lmms_eval" / f"{name}.json"
    settings = section.model_dump(mode="json", exclude={"models"})
    with recording(
        "lmms_eval",
        settings,
        root=root,
        name=name,
        seed=params.seed,
        inputs={"model": folder},
        outputs={"results": path},
    ):
        require_memory(params, folder, "evaluation")
        loaded = load_model(folder, trust_remote_code=params.base.trust_remote_code)
        results = run_benchmarks(
            loaded.model,
            loaded.processor,
            section.tasks,
            folder=None if section.folder is None else Path(section.folder),
            limit=section.limit,
            batch_size=params.evaluate.batch_size,
            seed=params.seed,
        )
        write_json(path, {"model": name, "digest": digest(folder), "settings": settings, "results": results})
    for task, metrics in results.items():
        values = ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
        typer.echo(f"lmms_eval: {name}, {task}: {values}")
