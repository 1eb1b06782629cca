"""Stage score: answers of a model that does not depend on who is forgotten, shared by all splits."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import SEEN, read_samples
from tasks.config import Params
from tasks.evaluate import draw_people, score_model
from tasks.runtime.artifacts import recording, writing


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write `answers/<name>.parquet`: every question about the people who can be forgotten, and the others'.

    `max_people` limits the others alone. With few-shot prompts the table is empty: the people shown depend on
    the split, and so do the answers.
    """
    table, folder = root / "prepared" / "samples.parquet", root / "models" / name
    path, settings = root / "answers" / f"{name}.parquet", params.evaluate.model_dump(mode="json")
    inputs = {"prepared": table, "model": folder}
    with recording(
        "score", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"answers": path}
    ) as record:
        questions = [] if params.evaluate.shots else read_samples(table, part="test")
        people = [sample for sample in questions if sample.set in (SEEN, "unseen")]
        rest = [sample for sample in questions if sample.set not in (SEEN, "unseen")]
        samples = [*people, *draw_people(rest, params.evaluate.max_people, params.seed)]
        scores = score_model(params, samples, [], "score", name, inputs, root, record)
        with writing(path) as partial:
            scores.to_parquet(partial, index=False)
    typer.echo(f"score: {path} holds {len(scores)} answers of {name}")
