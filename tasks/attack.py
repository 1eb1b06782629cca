"""Stage attack: try to bring back what one model was made to forget, in every way that is asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import Sample, read_samples
from tasks.config import Params
from tasks.evaluate import drawn
from tasks.runtime.artifacts import digest, read_json, recording, write_json, writing
from tasks.runtime.results import read_splits

if TYPE_CHECKING:
    import pandas as pd

    from efface.models.loading import LoadedModel

FORGOTTEN = ("forget", "unseen")
NONE = "none"
ASKED = ("batch_size", "max_new_tokens", "max_people", "share_prefix", "prompts", "shots")
"""Keys of the section `evaluate` that attacks share with the stage of that name."""


@dataclass(frozen=True)
class Variant:
    """A model as an attack leaves it, and what it is asked then."""

    attack: str
    name: str
    loaded: LoadedModel
    samples: list[Sample]
    budget: int | None = None


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Attack the model of that name and write `attacks/<name>.parquet` and `.json`.

    Args:
        params: the whole file.
        name: of a model that is evaluated.
        root: the data folder.
    """
    import pandas as pd
    from tqdm import tqdm

    from efface.evaluation.metrics import summarise, with_metrics

    attacks = params.attack.run
    path = root / "attacks" / f"{name}.parquet"
    table, models = root / "prepared" / "samples.parquet", root / "models"
    inputs = {"prepared": table, "model": models / params.models[name]}
    inputs |= {"vanilla": models / "vanilla"} if "module_reload" in attacks else {}
    settings = params.attack.model_dump(mode="json", include=set(attacks))
    settings |= params.evaluate.model_dump(mode="json", include=set(ASKED))
    with recording(
        "attack", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        samples = drawn(
            read_samples(table, set=FORGOTTEN, part="test"), params.evaluate.max_people, params.seed
        )
        unavailable = _unavailable(params, attacks, samples)
        possible = [attack for attack in attacks if attack not in unavailable]
        scorer = _Scorer(params, root, name, settings, inputs)
        tables, results = [], []
        variants = _variants(params, possible, inputs, samples, root)
        bar = tqdm(variants, total=_count(params, possible), desc=f"attacking {name}", unit="variant")
        for variant in bar:
            scores = scorer.score(variant)
            labels = {"attack": variant.attack, "variant": variant.name, "budget": variant.budget}
            tables.append(scores.assign(model=name, benchmark=scorer.benchmark, **labels))
            results.append(labels | {"rows": len(scores), "metrics": summarise(with_metrics(scores))})
        scored = pd.concat(tables, ignore_index=True).astype({"budget": "Int64"})
        with writing(path) as partial:
            scored.to_parquet(partial, index=False)
        about = {"model": name, "digest": digest(inputs["model"]), "rows": len(scored)}
        write_json(
            path.with_suffix(".json"),
            about | {"settings": settings, "results": results, "unavailable": unavailable},
        )
        record.summary = {"variants": len(results), "unavailable": unavailable}
        scorer.remove_parts()
    for line in _lines(scored, name, root, unavailable):
        typer.echo(f"attack: {line}")
    if name != "retrained" and "retrained" not in params.attack.models:
        typer.echo("attack: what counts is the distance to retrained; python -m tasks attack retrained")


def _unavailable(params: Params, attacks: Sequence[str], samples: Sequence[Sample]) -> dict[str, str]:
    """Attacks that these people do not allow, with the reason: better told than a whole stage that fails."""
    from efface.attacks.relearn import split_people
    from efface.errors import DataError

    if "relearn" not in attacks:
        return {}
    people = [sample.entity_id for sample in samples]
    try:
        split_people(people, share=params.attack.relearn.share, seed=params.seed)
    except DataError as error:
        return {"relearn": str(error)}
    return {}


def _count(params: Params, attacks: Sequence[str]) -> int:
    """How many variants there are, the model as it is among them."""
    section = params.attack
    numbers = {
        "relearn": len(section.relearn.budgets),
        "quantize": len(section.quantize.bits),
        "module_reload": len(section.module_reload.parts),
        "cross_modal": len(section.cross_modal.kinds),
        "image_shift": len(section.image_shift.kinds),
    }
    return 1 + sum(numbers[attack] for attack in attacks)


def _variants(
    params: Params, attacks: Sequence[str], inputs: dict[str, Path], samples: list[Sample], root: Path
) -> Iterator[Variant]:
    """The model as it is, then each variant of each attack; at most two models are on the device at once."""
    from efface.attacks.inputs import cross_modal, image_shift
    from efface.models import load_model

    loaded, section = load_model(inputs["model"]), params.attack
    yield Variant(NONE, NONE, loaded, samples)
    if "cross_modal" in attacks:
        names = read_splits(root)["names"]
        for kind in section.cross_modal.kinds:
            yield Variant("cross_modal", kind, loaded, cross_modal(samples, names, kind=kind))
    if "image_shift" in attacks:
        for kind in section.image_shift.kinds:
            yield Variant("image_shift", kind, loaded, image_shift(samples, kind=kind, seed=params.seed))
    if "relearn" in attacks:  # the last that may use this copy: it changes every weight
        yield from _relearned(params, loaded, samples, root)
    del loaded
    if "quantize" in attacks:
        yield from _quantized(params, inputs["model"], samples)
    if "module_reload" in attacks:
        yield from _reloaded(params, inputs["model"], inputs["vanilla"], samples)


def _relearned(params: Params, loaded: LoadedModel, samples: list[Sample], root: Path) -> Iterator[Variant]:
    """The budget curve, on people the relearning never saw."""
    from efface.attacks.relearn import relearn, split_people

    section = params.attack.relearn
    people = [sample.entity_id for sample in samples]
    taught, held_out = split_people(people, share=section.share, seed=params.seed)
    facts = read_samples(root / "prepared" / "samples.parquet", split="forget", part="train")
    asked = [sample for sample in samples if sample.entity_id in held_out]
    for budget in relearn(
        loaded.model,
        loaded.processor,
        [sample for sample in facts if sample.entity_id in taught],
        budgets=section.budgets,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        seed=params.seed,
    ):
        yield Variant("relearn", f"{budget} steps", loaded, asked, budget)


def _quantized(params: Params, folder: Path, samples: list[Sample]) -> Iterator[Variant]:
    from efface.attacks.weights import quantize
    from efface.models import load_model

    for bits in params.attack.quantize.bits:
        fresh = load_model(folder)
        quantize(fresh.model, bits=bits)
        yield Variant("quantize", f"{bits} bits", fresh, samples)


def _reloaded(params: Params, folder: Path, vanilla: Path, samples: list[Sample]) -> Iterator[Variant]:
    from efface.attacks.weights import reload_part
    from efface.models import load_model

    source = load_model(vanilla, device="cpu")
    for part in params.attack.module_reload.parts:
        fresh = load_model(folder)
        reload_part(fresh.model, source.model, part=part)
        yield Variant("module_reload", part, fresh, samples)


class _Scorer:
    """Asks in the words of the stage `evaluate`; finished batches are kept until all variants are done."""

    def __init__(
        self, params: Params, root: Path, name: str, settings: dict[str, Any], inputs: dict[str, Path]
    ):
        from efface.data.samples import SETS
        from efface.evaluation.scoring.asking import Asking
        from efface.evaluation.scoring.prompts import draw_shots

        self.section = params.evaluate
        self.benchmark = str(read_json(inputs["prepared"].with_name("splits.json"))["benchmark"])
        shots = []
        if self.section.shots:
            questions = read_samples(inputs["prepared"], set=SETS)
            shots = draw_shots(questions, people=self.section.shots, seed=params.seed)
        self.asking = Asking(self.benchmark, self.section.prompts, tuple(shots))
        basis = {"settings": settings, "seed": params.seed}
        basis["inputs"] = {key: digest(path) for key, path in inputs.items()}
        self.key = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
        self.folder = root / "checkpoints" / f"attack@{name}"
        for other in self.folder.iterdir() if self.folder.is_dir() else ():
            if other.name != self.key[:16]:  # of other settings or inputs
                shutil.rmtree(other)

    def score(self, variant: Variant) -> pd.DataFrame:
        """The score table of a variant."""
        from efface.evaluation.scoring import score
        from efface.evaluation.scoring.parts import Parts

        name = f"{variant.attack}-{variant.name}"
        return score(
            variant.loaded.model,
            variant.loaded.processor,
            variant.samples,
            batch_size=self.section.batch_size,
            max_new_tokens=self.section.max_new_tokens,
            share_prefix=self.section.share_prefix,
            asking=self.asking,
            parts=Parts(self.folder / self.key[:16], key=f"{self.key}/{name}"),
        )

    def remove_parts(self) -> None:
        """Delete the finished batches; the stage is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _lines(scored: pd.DataFrame, name: str, root: Path, unavailable: dict[str, str]) -> Iterator[str]:
    """What comes back by picture, and how far that is from the retrained model where it was attacked too."""
    import pandas as pd

    from efface.attacks.outcomes import attack_outcomes

    beside = root / "attacks" / "retrained.parquet"  # for these words alone: no file holds the distance
    retrained = pd.read_parquet(beside) if name != "retrained" and beside.is_file() else None
    for outcome in attack_outcomes(scored, retrained, metrics=("exact_match",)):
        value, gap = outcome.values.get("exact_match"), outcome.gap("exact_match")
        after = "as it is" if outcome.attack == NONE else f"after {outcome.attack}, {outcome.variant}"
        if value is None:
            yield f"{name}, {after}: no exact match by picture is available"
            continue
        distance = "" if gap is None else f", {gap:+.2f} from retrained"
        yield f"{name}, {after}: answers {value:.2f} by picture{distance}"
    for attack, reason in unavailable.items():
        yield f"{name}, {attack}: not available: {reason}"
