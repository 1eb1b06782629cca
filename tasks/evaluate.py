"""Stage evaluate: ask one model every evaluation question and keep what it says."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from efface.data.samples import SETS, Sample, read_samples
from tasks.artifacts import digest, read_json, recording, write_json, writing
from tasks.params import Params


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Score the model of that name and write `scores/<name>.parquet` and `scores/<name>.json`."""
    from efface.evaluation import score
    from efface.evaluation.metrics import summarise
    from efface.models import load_model

    section = params.evaluate
    table, folder = root / "prepared" / "samples.parquet", root / "models" / section.models[name]
    path = root / "scores" / f"{name}.parquet"
    inputs = {"prepared": table, "model": folder}
    settings = {
        "batch_size": section.batch_size,
        "max_new_tokens": section.max_new_tokens,
        "max_people": section.max_people,
    }
    with recording(
        "evaluate", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        samples = _drawn(read_samples(table, set=SETS), section.max_people, params.seed)
        loaded = load_model(folder)
        started = time.perf_counter()
        scores = score(
            loaded.model,
            loaded.processor,
            samples,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
        )
        record.summary = {"samples_per_second": round(len(scores) / (time.perf_counter() - started), 1)}
        scores.insert(0, "model", name)
        scores.insert(1, "benchmark", read_json(table.with_name("splits.json"))["benchmark"])
        with writing(path) as partial:
            scores.to_parquet(partial, index=False)
        metrics = summarise(scores[scores["part"] == "test"])
        write_json(
            path.with_suffix(".json"),
            {"model": name, "digest": digest(folder), "rows": len(scores), "metrics": metrics},
        )
    shown = ", ".join(
        f"{kind} {metrics[kind]['multimodal']['exact_match']['value']:.2f}"
        for kind in ("forget", "retain")
        if kind in metrics
    )
    typer.echo(f"evaluate: {path} holds {len(scores)} answers of {name}; exact match with pictures: {shown}")


def _drawn(samples: Sequence[Sample], people: int | None, seed: int) -> list[Sample]:
    """The rows of at most so many people per set, the same for every model; skills, one stranger a row, stay
    whole."""
    if people is None:
        return list(samples)
    kept = set()
    for kind in SETS:
        entities = sorted({sample.entity_id for sample in samples if sample.set == kind})
        size = len(entities) if kind == "utility" else min(people, len(entities))
        kept |= {(kind, entity) for entity in random.Random(f"{seed}/{kind}").sample(entities, size)}
    return [sample for sample in samples if (sample.set, sample.entity_id) in kept]
