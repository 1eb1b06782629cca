"""Stage attack: try to bring back what one model was made to forget, and score what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import SETS, Sample, read_samples
from tasks.config import Params
from tasks.evaluate import draw_people
from tasks.runtime.artifacts import digest, recording, write_json, writing
from tasks.runtime.checkpoints import run_folder
from tasks.runtime.results import prepared_files, read_splits

if TYPE_CHECKING:
    from efface.models.loading import LoadedModel

UNATTACKED = "none"


@dataclass(frozen=True)
class Variant:
    """A model after one attack, and the questions to score it on."""

    attack: str
    name: str
    loaded: LoadedModel
    samples: list[Sample]
    budget: int | None = None


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Attack a model in the ways of `attack.run` and write `attacks/<name>.parquet` and `.json`."""
    import pandas as pd
    from tqdm import tqdm

    from efface.attacks.outcomes import attack_outcomes
    from efface.attacks.relearn import split_people
    from efface.errors import DataError
    from efface.evaluation.metrics import summarise, with_metrics
    from efface.evaluation.scoring import score
    from efface.evaluation.scoring.cache import ResultCache
    from efface.evaluation.scoring.prompt_style import PromptStyle
    from efface.evaluation.scoring.question_prompts import draw_shots

    scoring, seed, attacks = params.evaluate, params.seed, list(params.attack.run)
    table, path = root / "prepared", root / "attacks" / f"{name}.parquet"
    inputs = prepared_files(root) | {"model": root / "models" / params.models[name]}
    inputs |= {"vanilla": root / "models" / "vanilla"} if "module_reload" in attacks else {}
    settings = params.attack.model_dump(mode="json", include=set(attacks))
    settings |= scoring.model_dump(mode="json", exclude={"compile"})
    with recording(
        "attack", settings, root=root, name=name, seed=seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        splits = read_splits(root)
        questions = read_samples(table, set=("forget", "unseen"), part="test")
        samples = draw_people(questions, scoring.max_people, seed)
        unavailable = {}
        if "relearn" in attacks:
            try:
                split_people([s.entity_id for s in samples], share=params.attack.relearn.share, seed=seed)
            except DataError as error:  # too few people; the other attacks are still worth it
                unavailable["relearn"] = str(error)
                attacks.remove("relearn")
        shots = draw_shots(read_samples(table, set=SETS), people=scoring.shots, seed=seed)
        style = PromptStyle(str(splits["benchmark"]), scoring.prompts, tuple(shots))
        unfinished, key = run_folder(
            "attack", root=root, settings=settings, seed=seed, inputs=inputs, name=name
        )
        tables, results = [], []
        for variant in tqdm(_variants(params, attacks, inputs, samples), desc=f"attacking {name}"):
            scores = score(
                variant.loaded.model,
                variant.loaded.processor,
                variant.samples,
                batch_size=scoring.batch_size,
                max_new_tokens=scoring.max_new_tokens,
                share_prefix=scoring.share_prefix,
                style=style,
                cache=ResultCache(unfinished, key=f"{key}/{variant.attack}-{variant.name}"),
            )
            labels = {"attack": variant.attack, "variant": variant.name, "budget": variant.budget}
            tables.append(scores.assign(model=name, benchmark=splits["benchmark"], **labels))
            results.append(labels | {"rows": len(scores), "metrics": summarise(with_metrics(scores))})
        scored = pd.concat(tables, ignore_index=True).astype({"budget": "Int64"})
        with writing(path) as partial:
            scored.to_parquet(partial, index=False)
        summary = {"model": name, "digest": digest(inputs["model"]), "rows": len(scored)}
        summary |= {"settings": settings, "results": results, "unavailable": unavailable}
        write_json(path.with_suffix(".json"), summary)
        record.summary = {"variants": len(results), "unavailable": unavailable}
        ResultCache(unfinished, key=key).remove()
    retrained = path.with_name("retrained.parquet")  # only for these lines: no file holds the distance
    reference = pd.read_parquet(retrained) if name != "retrained" and retrained.is_file() else None
    for outcome in attack_outcomes(scored, reference, metrics=("exact_match",)):
        value, gap = outcome.values.get("exact_match"), outcome.gap("exact_match")
        attack = outcome.attack
        after = "unattacked" if attack == UNATTACKED else f"after {attack}, {outcome.variant}"
        match = "not available" if value is None else f"{value:.2f}"
        distance = "" if gap is None else f", {gap:+.2f} from retrained"
        typer.echo(f"attack: {name}, {after}: exact match by picture {match}{distance}")
    for attack, reason in unavailable.items():
        typer.echo(f"attack: {name}, {attack}: not available: {reason}")
    if name != "retrained" and reference is None:
        typer.echo(
            "attack: the distance to retrained counts; attack it too: python -m tasks attack retrained"
        )


def _variants(
    params: Params, attacks: list[str], inputs: dict[str, Path], samples: list[Sample]
) -> Iterator[Variant]:
    """The model unattacked, then every variant of each attack; at most two models are loaded at once."""
    from efface.attacks.inputs import cross_modal, image_shift
    from efface.attacks.relearn import relearn, split_people
    from efface.attacks.weights import quantize, reload_part
    from efface.models import load_model

    section, seed, folder = params.attack, params.seed, inputs["model"]
    trust = params.base.trust_remote_code
    loaded = load_model(folder, trust_remote_code=trust)
    yield Variant(UNATTACKED, UNATTACKED, loaded, samples)
    if "cross_modal" in attacks:
        names = read_splits(inputs["split"].parent.parent)["names"]
        for kind in section.cross_modal.kinds:
            yield Variant("cross_modal", kind, loaded, cross_modal(samples, names, kind=kind))
    if "image_shift" in attacks:
        for shift in section.image_shift.kinds:
            yield Variant("image_shift", shift, loaded, image_shift(samples, kind=shift, seed=seed))
    if "relearn" in attacks:  # changes the weights of this copy, so it comes last
        settings = section.relearn
        people = [sample.entity_id for sample in samples]
        train_people, test_people = split_people(people, share=settings.share, seed=seed)
        facts = read_samples(inputs["split"].parent, split="forget", part="train")
        for budget in relearn(
            loaded.model,
            loaded.processor,
            [sample for sample in facts if sample.entity_id in train_people],
            budgets=settings.budgets,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            seed=seed,
        ):
            unseen = [sample for sample in samples if sample.entity_id in test_people]
            yield Variant("relearn", f"{budget} steps", loaded, unseen, budget)
    del loaded
    if "quantize" in attacks:
        for bits in section.quantize.bits:
            fresh = load_model(folder, trust_remote_code=trust)
            quantize(fresh.model, bits=bits)
            yield Variant("quantize", f"{bits} bits", fresh, samples)
    if "module_reload" in attacks:
        source = load_model(inputs["vanilla"], device="cpu", trust_remote_code=trust)
        for part in section.module_reload.parts:
            fresh = load_model(folder, trust_remote_code=trust)
            reload_part(fresh.model, source.model, part=part)
            yield Variant("module_reload", part, fresh, samples)
