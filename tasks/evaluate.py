"""Stage evaluate: score one model on every evaluation question."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from efface.data.samples import SETS, Sample, read_samples
from tasks.config import Params
from tasks.runtime.artifacts import digest, read_json, recording, write_json, writing
from tasks.runtime.checkpoints import run_folder


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write `scores/<name>.parquet`, its summary `scores/<name>.json`, and `metrics/<name>.json`."""
    from efface.evaluation.benchmarks import view_of
    from efface.evaluation.metrics import summarise, unavailable, with_metrics
    from efface.evaluation.scoring import score
    from efface.evaluation.scoring.cache import ResultCache
    from efface.evaluation.scoring.prompt_style import PromptStyle
    from efface.evaluation.scoring.question_prompts import draw_shots
    from efface.evaluation.summary import model_metrics
    from efface.models import load_model

    section, seed = params.evaluate, params.seed
    settings = section.model_dump(mode="json")
    table, folder = root / "prepared" / "samples.parquet", root / "models" / params.models.get(name, name)
    inputs, path = {"prepared": table, "model": folder}, root / "scores" / f"{name}.parquet"
    with recording(
        "evaluate", settings, root=root, name=name, seed=seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        benchmark = read_json(table.with_name("splits.json"))["benchmark"]
        questions = read_samples(table, set=SETS)
        shots = draw_shots(questions, people=section.shots, seed=seed)
        unfinished, key = run_folder(
            "evaluate", root=root, settings=settings, seed=seed, inputs=inputs, name=name
        )
        cache = ResultCache(unfinished, key=key)
        loaded = load_model(folder, trust_remote_code=params.base.trust_remote_code)
        started = time.perf_counter()
        scores = score(
            loaded.model,
            loaded.processor,
            draw_people(questions, section.max_people, seed),
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            share_prefix=section.share_prefix,
            style=PromptStyle(benchmark, section.prompts, tuple(shots)),
            cache=cache,
            compiled=section.compile,
        )
        record.summary = {"samples_per_second": round(len(scores) / (time.perf_counter() - started), 1)}
        scores.insert(0, "model", name)
        scores.insert(1, "benchmark", benchmark)
        metrics = summarise(with_metrics(scores[scores["part"] == "test"]))
        summary = {
            "model": name,
            "digest": digest(folder),
            "rows": len(scores),
            "metrics": metrics,
            "unavailable": unavailable(scores),
            "published": view_of(scores, benchmark),
        }
        with writing(path) as partial:
            scores.to_parquet(partial, index=False)
        write_json(path.with_suffix(".json"), summary)
        write_json(root / "metrics" / f"{name}.json", model_metrics(scores))
        cache.remove()
    values = ", ".join(
        f"{kind} {metrics[kind]['multimodal']['exact_match']['value']:.2f}"
        for kind in ("forget", "retain")
        if kind in metrics
    )
    typer.echo(f"evaluate: {path} holds {len(scores)} answers of {name}; exact match by picture: {values}")


def draw_people(samples: Sequence[Sample], people: int | None, seed: int) -> list[Sample]:
    """The rows of at most so many people per set and part, the same for every model; None: all rows.

    Skills have one stranger a row, and all their rows stay.
    """
    if people is None:
        return list(samples)
    drawn_rows = set()
    for kind, part in dict.fromkeys((sample.set, sample.part) for sample in samples):
        entities = sorted({s.entity_id for s in samples if (s.set, s.part) == (kind, part)})
        size = len(entities) if kind == "utility" else min(people, len(entities))
        draw = random.Random(f"{seed}/{kind}/{part}")
        drawn_rows |= {(kind, part, entity) for entity in draw.sample(entities, size)}
    return [sample for sample in samples if (sample.set, sample.part, sample.entity_id) in drawn_rows]
