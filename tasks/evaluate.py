"""Stage evaluate: ask one model every evaluation question and keep what it says."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import SETS, Sample, read_samples
from tasks.config import Params
from tasks.runtime.artifacts import digest, read_json, recording, write_json, writing

if TYPE_CHECKING:
    import pandas as pd

    from efface.evaluation.scoring.parts import Parts


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Score the model of that name and write `scores/<name>.parquet`, its `.json`, `metrics`."""
    from efface.evaluation.scoring import score
    from efface.evaluation.scoring.asking import Asking
    from efface.evaluation.scoring.prompts import draw_shots
    from efface.evaluation.summary import model_metrics
    from efface.models import load_model

    section = params.evaluate
    table, folder = root / "prepared" / "samples.parquet", root / "models" / params.models.get(name, name)
    path = root / "scores" / f"{name}.parquet"
    inputs = {"prepared": table, "model": folder}
    settings = {
        "batch_size": section.batch_size,
        "max_new_tokens": section.max_new_tokens,
        "max_people": section.max_people,
        "share_prefix": section.share_prefix,
        "prompts": section.prompts,
        "shots": section.shots,
        "compile": section.compile,
    }
    with recording(
        "evaluate", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        benchmark = read_json(table.with_name("splits.json"))["benchmark"]
        questions = read_samples(table, set=SETS)
        shots = draw_shots(questions, people=section.shots, seed=params.seed)
        samples = drawn(questions, section.max_people, params.seed)
        parts = _parts(root, name, settings, params.seed, inputs)
        loaded = load_model(folder)
        started = time.perf_counter()
        scores = score(
            loaded.model,
            loaded.processor,
            samples,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            share_prefix=section.share_prefix,
            asking=Asking(benchmark, section.prompts, tuple(shots)),
            parts=parts,
            compiled=section.compile,
        )
        record.summary = {"samples_per_second": round(len(scores) / (time.perf_counter() - started), 1)}
        scores.insert(0, "model", name)
        scores.insert(1, "benchmark", benchmark)
        with writing(path) as partial:
            scores.to_parquet(partial, index=False)
        summary = {
            "model": name,
            "digest": digest(folder),
            "rows": len(scores),
            **_summary(scores, benchmark),
        }
        write_json(path.with_suffix(".json"), summary)
        write_json(root / "metrics" / f"{name}.json", model_metrics(scores))
        parts.remove()
    metrics = summary["metrics"]
    shown = ", ".join(
        f"{kind} {metrics[kind]['multimodal']['exact_match']['value']:.2f}"
        for kind in ("forget", "retain")
        if kind in metrics
    )
    typer.echo(f"evaluate: {path} holds {len(scores)} answers of {name}; exact match with pictures: {shown}")


def _summary(scores: pd.DataFrame, benchmark: str) -> dict[str, Any]:
    """What a score table says of its model, for the people whose numbers count."""
    from efface.evaluation.benchmarks import view_of
    from efface.evaluation.metrics import summarise, unavailable, with_metrics

    return {
        "metrics": summarise(with_metrics(scores[scores["part"] == "test"])),
        "unavailable": unavailable(scores),
        "published": view_of(scores, benchmark),
    }


def _parts(
    root: Path, name: str, settings: Mapping[str, Any], seed: int, inputs: Mapping[str, Path]
) -> Parts:
    """Where the finished batches of this very scoring are; those of other scorings are deleted."""
    from efface.evaluation.scoring.parts import Parts

    digests = {key: digest(path) for key, path in inputs.items()}
    basis = json.dumps({"settings": settings, "seed": seed, "inputs": digests}, sort_keys=True)
    key = hashlib.sha256(basis.encode()).hexdigest()
    folder = root / "checkpoints" / f"evaluate@{name}"
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != key[:16]:
            shutil.rmtree(other)
    done = sum(1 for _ in (folder / key[:16]).glob("*.json"))
    if done:
        typer.echo(f"evaluate: going on after {done} finished batches in {folder / key[:16]}", err=True)
    return Parts(folder / key[:16], key=key)


def drawn(samples: Sequence[Sample], people: int | None, seed: int) -> list[Sample]:
    """The rows of at most so many people per set and part, the same for every model; skills, one stranger a
    row, stay whole."""
    if people is None:
        return list(samples)
    kept = set()
    for kind, part in dict.fromkeys((sample.set, sample.part) for sample in samples):
        entities = sorted({s.entity_id for s in samples if (s.set, s.part) == (kind, part)})
        size = len(entities) if kind == "utility" else min(people, len(entities))
        draw = random.Random(f"{seed}/{kind}/{part}")
        kept |= {(kind, part, entity) for entity in draw.sample(entities, size)}
    return [sample for sample in samples if (sample.set, sample.part, sample.entity_id) in kept]
