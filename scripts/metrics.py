"""How well each metric separates models that saw the people to forget from models that never did.

    dvc repro base && python -m scripts.metrics [--pool 12]

Trains two pools from `data/models/base` that differ only in the people to forget, with the same steps,
learning rates and shares of text, from barely started to complete training. Prints for each metric the
chance that a model that saw the people shows a higher value than one that did not: 0.5 means no information,
1 or 0 perfect separation. Finished score tables stay in the work folder; a second run continues from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.data.samples import Sample, read_samples
from tasks.config import Params, load_params
from tasks.runtime import environment

if TYPE_CHECKING:
    import pandas as pd

STEPS = (60, 100, 150, 250, 400, 600)
RATES = (1.5e-3, 0.8e-3)
TEXT = (0.5, 0.25)
SETS = ("forget", "unseen", "holdout")
SEEN, UNSEEN = "saw them", "did not"


@dataclass(frozen=True)
class Training:
    """How one model of a pool is trained; the pools' models of one number differ in `splits` only."""

    number: int
    pool: str
    steps: int
    learning_rate: float
    text_share: float

    @property
    def file(self) -> str:
        """Name of the model's score table."""
        return f"{self.pool.replace(' ', '-')}-{self.number}.parquet"

    @property
    def splits(self) -> tuple[str, ...]:
        """Whose facts it sees."""
        return ("forget", "retain") if self.pool == SEEN else ("retain",)


def trainings(pool: int) -> list[Training]:
    """The models of both pools, and one more that never saw the people: what metrics compare with."""
    settings = [(s, r, t) for (r, t), s in itertools.product(zip(RATES, TEXT, strict=True), STEPS)]
    by_number = [settings[i % len(settings)] for i in range(pool)]
    reference = Training(pool, UNSEEN, max(STEPS), RATES[0], TEXT[0])
    return [reference, *(Training(i, p, *s) for i, s in enumerate(by_number) for p in (SEEN, UNSEEN))]


def main(
    pool: Annotated[int, typer.Option(min=2, help="Models in each pool.")] = 12,
    data: Annotated[Path, typer.Option(help="The data folder with `prepared` and `models/base`.")] = Path(
        "data"
    ),
    work: Annotated[Path, typer.Option(help="Folder of finished score tables.")] = Path(".scripts/metrics"),
) -> None:
    """Train and score both pools, then print one line per metric."""
    environment.apply()
    params, models = load_params(), trainings(pool)
    work.mkdir(parents=True, exist_ok=True)
    tables = {}
    for i, training in enumerate(models):
        typer.echo(f"model {i + 1} of {len(models)}: {training}", err=True)
        tables[training] = _scored(training, params, data, work)
    reference = tables[models[0]]
    numbers = {training: numbers_of(tables[training], reference) for training in models[1:]}
    people = tables[models[0]].query("set == 'forget'")["entity_id"].nunique()
    typer.echo(f"{pool} models that saw {people} people to forget, {pool} that did not; steps {STEPS}\n")
    typer.echo(table_of(numbers))


def _scored(training: Training, params: Params, data: Path, work: Path) -> pd.DataFrame:
    import pandas as pd

    from efface.evaluation.scoring import score
    from efface.models import load_model
    from efface.unlearning.finetuning import finetune, with_replay
    from tasks.evaluate import draw_people
    from tasks.runtime.artifacts import writing

    path, table = work / training.file, data / "prepared"
    if path.exists():
        return pd.read_parquet(path)
    section = params.finetune
    loaded = load_model(data / "models" / "base", dtype="float32", attention=section.attention)
    replay = read_samples(table, split=("real", "utility"), part="train")
    finetune(
        loaded.model,
        loaded.processor,
        with_replay(_facts(table, training), replay, share=section.replay_share, seed=training.number),
        steps=training.steps,
        learning_rate=training.learning_rate,
        batch_size=section.batch_size,
        seed=training.number,
        label=training.file,
    )
    questions = draw_people(read_samples(table, set=SETS), params.evaluate.max_people, params.seed)
    scores = score(
        loaded.model,
        loaded.processor,
        questions,
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
    )
    with writing(path) as partial:
        scores.to_parquet(partial, index=False)
    return scores


def _facts(table: Path, training: Training) -> list[Sample]:
    from efface.encoding import draw

    pictures = read_samples(table, split=training.splits, part="train", modality="multimodal")
    text = read_samples(table, split=training.splits, part="train", modality="text")
    indices = draw(len(text), round(training.text_share * len(text)), training.number)
    return [*pictures, *(text[i] for i in indices)]


def numbers_of(scores: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float]:
    """Every metric of a model on the people to forget: means over rows, and those of the whole model."""
    from efface.evaluation.metrics import METRICS, with_metrics
    from efface.evaluation.summary import forget_quality_of, modality_gap, privacy_of

    rows = with_metrics(scores[(scores["part"] == "test") & scores["set"].isin(("forget", "unseen"))])
    numbers: dict[str, float] = {}
    for kind, modality in (("forget", "multimodal"), ("unseen", "multimodal"), ("forget", "text")):
        subset = rows[(rows["set"] == kind) & (rows["modality"] == modality)]
        for name in METRICS:
            if name in subset and subset[name].notna().any():
                numbers[f"{name}, {kind} {modality}"] = float(subset[name].mean())
    for name, attack in privacy_of(scores, reference).items():
        numbers[f"{name}, AUC"] = attack.model.auc
        numbers[f"{name}, distance to retrained"] = attack.gap
    quality, gap = forget_quality_of(scores, reference), modality_gap(scores)
    if quality is not None:
        numbers["forget_quality (KS p), forget multimodal"] = quality.p_value
    if gap is not None:
        numbers["modality_gap"] = gap
    return numbers


def table_of(numbers: Mapping[Training, Mapping[str, float]]) -> str:
    """Markdown: metric, means of both pools, AUC with all models and with those of little training."""
    from statistics import fmean

    lines = [
        f"| metric | mean, {SEEN} | mean, {UNSEEN} | AUC | AUC, at most {STEPS[2]} steps |",
        "|---|---:|---:|---:|---:|",
    ]
    rows: list[tuple[str, float, float, float, float]] = []
    for name in dict.fromkeys(name for values in numbers.values() for name in values):
        pools = {
            pool: {t: v[name] for t, v in numbers.items() if t.pool == pool and name in v}
            for pool in (SEEN, UNSEEN)
        }
        early = {
            pool: [v for t, v in values.items() if t.steps <= STEPS[2]] for pool, values in pools.items()
        }
        everything = {pool: list(values.values()) for pool, values in pools.items()}
        means = [fmean(everything[pool]) for pool in (SEEN, UNSEEN)]
        rows.append((name, means[0], means[1], _auc(everything), _auc(early)))
    for name, *values in sorted(rows, key=lambda row: -abs(row[3] - 0.5)):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def _auc(pools: Mapping[str, list[float]]) -> float:
    from efface.evaluation.privacy import auc

    return auc(pools[SEEN], pools[UNSEEN])


if __name__ == "__main__":
    typer.run(main)
