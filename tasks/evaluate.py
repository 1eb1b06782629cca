"""Stage evaluate: score one model on every evaluation question of the split."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import PARTS, SETS, Sample, read_samples
from efface.errors import ArtifactError
from tasks.config import SHARED_MODELS, Params
from tasks.runtime.artifacts import RunRecord, digest, read_json, recording, write_json, writing
from tasks.runtime.checkpoints import run_folder
from tasks.runtime.memory import require_memory
from tasks.runtime.results import prepared_files

if TYPE_CHECKING:
    import pandas as pd


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write `scores/<name>.parquet`, its summary `scores/<name>.json`, and `metrics/<name>.json`.

    The answers of base and vanilla are read from `answers/<name>.parquet`, which does not depend on the
    split.
    """
    from efface.evaluation.benchmarks import view_of
    from efface.evaluation.metrics import summarise, unavailable, with_metrics
    from efface.evaluation.scoring.question_prompts import draw_shots
    from efface.evaluation.summary import model_metrics

    section, seed = params.evaluate, params.seed
    folder, path = root / "models" / params.models.get(name, name), root / "scores" / f"{name}.parquet"
    answers = root / "answers" / f"{name}.parquet" if name in SHARED_MODELS and not section.shots else None
    inputs = prepared_files(root) | {"model": folder}
    if answers is not None:
        inputs["answers"] = answers
    elif section.base_likelihood:
        inputs["base"] = root / "models" / "base"
    settings = section.model_dump(mode="json")
    with recording(
        "evaluate", settings, root=root, name=name, seed=seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        benchmark = read_json(inputs["split"])["benchmark"]
        questions = read_samples(inputs["split"].parent, set=SETS)
        samples = draw_people(questions, section.max_people, seed)
        if answers is not None:
            scores = _labelled(answers, samples)
        else:
            shots = draw_shots(questions, people=section.shots, seed=seed)
            scores = score_model(params, samples, shots, "evaluate", name, inputs, root, record)
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
    values = by_picture(metrics)
    typer.echo(f"evaluate: {path} holds {len(scores)} answers of {name}; exact match by picture: {values}")


def by_picture(metrics: Mapping[str, Any]) -> str:
    """Exact match by picture of both sides in words; some facts may have no question that it can measure."""
    cells = {
        kind: metrics.get(kind, {}).get("multimodal", {}).get("exact_match") for kind in ("forget", "retain")
    }
    return ", ".join(f"{kind} {cell['value']:.2f}" if cell else f"{kind} –" for kind, cell in cells.items())


def score_model(
    params: Params,
    samples: Sequence[Sample],
    shots: Sequence[Sample],
    stage: str,
    name: str,
    inputs: Mapping[str, Path],
    root: Path,
    record: RunRecord,
) -> pd.DataFrame:
    """Score the model at `inputs["model"]` with the settings of `evaluate`; a rerun resumes after a kill.

    Args:
        params: the whole file.
        samples: questions; none gives an empty table.
        shots: solved questions to show before them.
        stage, name, inputs: of the run, for its unfinished work; with `base` among the inputs, that model
            judges the answers.
        root: the data folder.
        record: gets the speed.
    """
    import pandas as pd

    from efface.evaluation.scoring import answer_logprobs, score
    from efface.evaluation.scoring.cache import ResultCache
    from efface.evaluation.scoring.prompt_style import PromptStyle
    from efface.models import load_model

    section = params.evaluate
    if not samples:
        return pd.DataFrame({"sample_id": pd.Series(dtype="str")})
    unfinished, key = run_folder(
        stage, root=root, settings=section.model_dump(mode="json"), seed=params.seed, inputs=inputs, name=name
    )
    cache = ResultCache(unfinished, key=key)
    require_memory(params, inputs["model"], "evaluation")
    loaded = load_model(inputs["model"], trust_remote_code=params.base.trust_remote_code)
    started = time.perf_counter()
    scores = score(
        loaded.model,
        loaded.processor,
        samples,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        share_prefix=section.share_prefix,
        style=PromptStyle(params.benchmark.name, section.prompts, tuple(shots)),
        cache=cache,
    )
    record.summary = {"samples_per_second": round(len(scores) / (time.perf_counter() - started), 1)}
    if "base" in inputs:
        del loaded  # makes room for the base model
        base = load_model(inputs["base"], trust_remote_code=params.base.trust_remote_code)
        answers = scores["generation"].tolist()
        logprobs = answer_logprobs(
            base.model, base.processor, samples, answers, batch_size=section.batch_size
        )
        scores["base_logprob"] = pd.Series(logprobs, dtype="Float64")
    cache.remove()
    return scores


def _labelled(answers: Path, samples: Sequence[Sample]) -> pd.DataFrame:
    """The answers to these questions, in their order, with their split, set and part.

    Raises:
        ArtifactError: if an answer is missing.
    """
    import pandas as pd

    table = pd.read_parquet(answers)
    ids = [sample.sample_id for sample in samples]
    if missing := sorted({*ids} - {*table["sample_id"]}):
        raise ArtifactError(
            f"{answers} lacks {len(missing)} of {len(ids)} answers, such as that to sample {missing[0]}: "
            "expected one for every question of the split; rebuild it with: dvc repro"
        )
    scores = table.set_index("sample_id", drop=False).loc[ids].reset_index(drop=True)
    return scores.assign(
        **{key: [getattr(s, key) for s in samples] for key in ("split", "set", "part") if key in scores}
    )


def draw_people(samples: Sequence[Sample], people: int | None, seed: int) -> list[Sample]:
    """The rows of at most so many people per set and part, the same for every model; None: all rows.

    Skills have one stranger a row, and all their rows stay. So do retained facts of people to forget.
    """
    if people is None:
        return list(samples)
    partly = {s.entity_id for s in samples if s.set == "forget"}
    drawn_rows: set[tuple[str | None, str, str]] = {("retain", p, e) for p in PARTS for e in partly}
    for kind, part in dict.fromkeys((sample.set, sample.part) for sample in samples):
        entities = sorted({s.entity_id for s in samples if (s.set, s.part) == (kind, part)})
        entities = [e for e in entities if kind != "retain" or e not in partly]
        size = len(entities) if kind == "utility" else min(people, len(entities))
        draw = random.Random(f"{seed}/{kind}/{part}")
        drawn_rows |= {(kind, part, entity) for entity in draw.sample(entities, size)}
    return [sample for sample in samples if (sample.set, sample.part, sample.entity_id) in drawn_rows]
