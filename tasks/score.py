"""Stage score: answers of base or vanilla, which do not depend on who is forgotten, for all splits."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import OF_FORGOTTEN, SEEN, read_samples
from tasks.config import Params
from tasks.evaluate import draw_people, score_model
from tasks.runtime.artifacts import recording, writing


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write `answers/<name>.parquet`: answers to all questions about people who can be forgotten, and others.

    `max_people` limits only the others. With few-shot prompts the table is empty, as the people shown, and so
    the answers, depend on the split.
    """
    table, folder = root / "prepared" / "samples.parquet", root / "models" / name
    path, settings = root / "answers" / f"{name}.parquet", params.evaluate.model_dump(mode="json")
    inputs = {"prepared": table, "model": folder}
    if params.evaluate.base_likelihood:
        inputs["base"] = root / "models" / "base"
    with recording(
        "score", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"answers": path}
    ) as record:
        questions = [] if params.evaluate.shots else read_samples(table, part="test")
        people = [sample for sample in questions if sample.set in (SEEN, *OF_FORGOTTEN)]
        rest = [sample for sample in questions if sample.set not in (SEEN, *OF_FORGOTTEN)]
        samples = [*people, *draw_people(rest, params.evaluate.max_people, params.seed)]
        scores = score_model(params, samples, [], "score", name, inputs, root, record)
        with writing(path) as partial:
            scores.to_parquet(partial, index=False)
    typer.echo(f"score: {path} holds {len(scores)} answers of {name}")
