"""Stage attack: try to bring back what a model was made to forget, and do the same to the retrained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import Sample, read_samples
from tasks.artifacts import read_json, recording, write_json, writing
from tasks.evaluate import drawn
from tasks.params import Params
from tasks.results import read_splits

if TYPE_CHECKING:
    from efface.models.loading import LoadedModel

FORGOTTEN = ("forget", "test")
Variant = tuple[str, "LoadedModel", list[Sample]]


def run(params: Params, name: str, model: str, root: Path = Path("data")) -> None:
    """Attack a model, retrained beside it, and write `attacks/<name>@<model>.parquet` and `.json`.

    Args:
        params: the whole file.
        name: of the attack, a key of the section `attack`.
        model: a key of `evaluate.models`.
        root: the data folder.
    """
    import pandas as pd

    from efface.evaluation.metrics import summarise, with_metrics
    from efface.evaluation.scoring import score

    samples = drawn(
        read_samples(root / "prepared" / "samples.parquet", set=FORGOTTEN, part="test"),
        params.evaluate.max_people,
        params.seed,
    )
    benchmark = read_json(root / "prepared" / "splits.json")["benchmark"]
    path = root / "attacks" / f"{name}@{model}.parquet"
    folders = {
        who: root / "models" / params.evaluate.models[who] for who in dict.fromkeys([model, "retrained"])
    }
    inputs = {"prepared": root / "prepared" / "samples.parquet", **folders}
    settings = params.attack.model_dump(mode="json")[name]
    with recording(
        "attack",
        settings,
        root=root,
        name=f"{name}-{model}",
        seed=params.seed,
        inputs=inputs,
        outputs={"scores": path},
    ) as record:
        tables, results = [], []
        for who, folder in folders.items():
            for variant, loaded, asked in _variants(params, name, folder, samples, root):
                scores = score(
                    loaded.model,
                    loaded.processor,
                    asked,
                    batch_size=params.evaluate.batch_size,
                    max_new_tokens=params.evaluate.max_new_tokens,
                    share_prefix=params.evaluate.share_prefix,
                )
                labels = {
                    "attack": name,
                    "variant": variant,
                    "model": who,
                    "benchmark": benchmark,
                }
                tables.append(scores.assign(**labels))
                results.append(labels | {"metrics": summarise(with_metrics(scores))})
        with writing(path) as partial:
            pd.concat(tables, ignore_index=True).to_parquet(partial, index=False)
        write_json(
            path.with_suffix(".json"),
            {"attack": name, "model": model, "settings": settings, "results": results},
        )
        record.summary = {"variants": len(results)}
    for line in _lines(results, model):
        typer.echo(line)


def _variants(
    params: Params, name: str, folder: Path, samples: Sequence[Sample], root: Path
) -> Iterator[Variant]:
    """Each variant of an attack: its name, the model as it is then, and what it is asked. The first is no
    attack.
    """
    from efface.models import load_model

    loaded = load_model(folder)
    asked = list(samples)
    section = params.attack
    if name == "relearn":
        yield from _relearn(params, loaded, asked, root)
        return
    yield "none", loaded, asked
    if name == "quantize":
        from efface.attacks.weights import quantize

        for bits in section.quantize.bits:
            fresh = load_model(folder)
            quantize(fresh.model, bits=bits)
            yield f"{bits} bits", fresh, asked
    elif name == "module_reload":
        from efface.attacks.weights import reload_part

        vanilla = load_model(root / "models" / params.evaluate.models["vanilla"])
        for part in section.module_reload.parts:
            fresh = load_model(folder)
            reload_part(fresh.model, vanilla.model, part=part)
            yield part, fresh, asked
    elif name == "cross_modal":
        from efface.attacks.inputs import cross_modal

        names = read_splits(root)["names"]
        for kind in section.cross_modal.kinds:
            yield kind, loaded, cross_modal(asked, names, kind=kind)
    else:
        from efface.attacks.inputs import image_shift

        for kind in section.image_shift.kinds:
            yield kind, loaded, image_shift(asked, kind=kind, seed=params.seed)


def _relearn(params: Params, loaded: LoadedModel, samples: Sequence[Sample], root: Path) -> Iterator[Variant]:
    """The budget curve, on people the relearning never saw."""
    from efface.attacks.relearn import relearn, split_people

    section = params.attack.relearn
    taught, held_out = split_people(
        [sample.entity_id for sample in samples], share=section.share, seed=params.seed
    )
    facts = [
        sample
        for sample in read_samples(root / "prepared" / "samples.parquet", split="forget", part="train")
        if sample.entity_id in taught
    ]
    asked = [sample for sample in samples if sample.entity_id in held_out]
    for budget in relearn(
        loaded.model,
        loaded.processor,
        facts,
        budgets=section.budgets,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        seed=params.seed,
    ):
        yield f"{budget} steps", loaded, asked


def _lines(results: Sequence[dict[str, Any]], model: str) -> Iterator[str]:
    """What comes back by picture, and how far that is from the retrained model after the same attack."""
    exact = {(result["model"], result["variant"]): _exact(result["metrics"]) for result in results}
    for (who, variant), value in exact.items():
        yardstick = exact["retrained", variant]
        if who != model:
            continue
        if value is None or yardstick is None:
            yield f"attack: {results[0]['attack']}, {variant}: no exact match by picture is available"
            continue
        yield (
            f"attack: {results[0]['attack']}, {variant}: {model} answers {value:.2f} by picture, "
            f"retrained {yardstick:.2f}, {value - yardstick:+.2f}"
        )


def _exact(metrics: dict[str, Any]) -> float | None:
    cell = metrics.get("forget", {}).get("multimodal", {}).get("exact_match")
    return None if cell is None else float(cell["value"])
