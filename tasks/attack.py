"""Stage attack: try to bring back what one model was made to forget, and score what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.attacks import NO_ATTACK, UnavailableAttack
from efface.data.samples import SETS, Sample, read_samples
from tasks.config import Params
from tasks.config.evaluation import ATTACKS
from tasks.evaluate import draw_people
from tasks.runtime.artifacts import digest, recording, write_json, writing
from tasks.runtime.checkpoints import run_folder
from tasks.runtime.results import prepared_files, read_splits

if TYPE_CHECKING:
    import pandas as pd

    from efface.evaluation.scoring.cache import ResultCache
    from efface.models.loading import LoadedModel

NEEDS = {
    "reword": "no fact is worded in two ways; give other words for its questions as attack.reword.lists",
    "in_context": "there is no solved question to show; it needs people to keep, and several facts a person",
    "language": "attack.language.lists holds no question of the table, word by word; give it translations",
    "cross_modal": "it needs questions with a picture about people whose names are known",
    "typographic": "it needs questions with a picture, and names for question_with_name",
    "image_shift": "it needs questions with a picture",
}
"""Attack to what it lacks where it has no question to ask."""


@dataclass(frozen=True)
class Variant:
    """A model after one attack, and the questions to score it on, or their scores."""

    attack: str
    name: str
    loaded: LoadedModel | None
    samples: list[Sample]
    budget: int | None = None
    scores: pd.DataFrame | None = None


@dataclass
class Target:
    """The model under attack, and what the attacks on it read.

    Attributes:
        inputs: files and folders of the stage.
        benchmark: its name.
        names: entity id to name.
        samples: questions about the people to forget.
        cache: of finished work, by label.
        floors: variant of the probe to what guessing and the base model reach, in [0, 1].
    """

    params: Params
    inputs: Mapping[str, Path]
    benchmark: str
    names: Mapping[str, str]
    samples: list[Sample]
    cache: Callable[[str], ResultCache]
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    _intact: LoadedModel | None = None

    @property
    def table(self) -> Path:
        """Folder of the prepared samples."""
        return self.inputs["split"].parent

    @property
    def intact(self) -> LoadedModel:
        """The model as it is, for attacks that leave its weights alone."""
        self._intact = self._intact or self.load("model")
        return self._intact

    def fresh(self) -> LoadedModel:
        """The model once more, to be changed; the intact one makes room."""
        self._intact = None
        return self.load("model")

    def load(self, key: str, **options: Any) -> LoadedModel:
        """One of the models among the inputs."""
        from efface.models import load_model

        trust = self.params.base.trust_remote_code
        return load_model(self.inputs[key], trust_remote_code=trust, **options)


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Attack a model in the ways of `attack.run` and write `attacks/<name>.parquet` and `.json`."""
    import pandas as pd
    from tqdm import tqdm

    from efface.attacks.outcomes import attack_outcomes, worst_attack
    from efface.evaluation.metrics import summarise, with_metrics
    from efface.evaluation.scoring import score
    from efface.evaluation.scoring.cache import ResultCache
    from efface.evaluation.scoring.prompt_style import PromptStyle
    from efface.evaluation.scoring.question_prompts import draw_shots

    scoring, seed, path = params.evaluate, params.seed, root / "attacks" / f"{name}.parquet"
    attacks = [attack for attack in ATTACKS if attack in params.attack.run]
    table, inputs = root / "prepared", prepared_files(root)
    inputs["model"] = root / "models" / params.models[name]
    inputs |= {"vanilla": root / "models" / "vanilla"} if "module_reload" in attacks else {}
    inputs |= {"base": root / "models" / "base"} if "probe" in attacks else {}
    settings = params.attack.model_dump(mode="json", include=set(attacks))
    settings |= scoring.model_dump(mode="json")
    with recording(
        "attack", settings, root=root, name=name, seed=seed, inputs=inputs, outputs={"scores": path}
    ) as record:
        splits = read_splits(root)
        questions = read_samples(table, set=("forget", "unseen"), part="test")
        shots = draw_shots(read_samples(table, set=SETS), people=scoring.shots, seed=seed)
        style = PromptStyle(str(splits["benchmark"]), scoring.prompts, tuple(shots))
        unfinished, key = run_folder(
            "attack", root=root, settings=settings, seed=seed, inputs=inputs, name=name
        )
        target = Target(
            params,
            inputs,
            str(splits["benchmark"]),
            splits["names"],
            draw_people(questions, scoring.max_people, seed),
            lambda label: ResultCache(unfinished, key=f"{key}/{label}"),
        )
        tables, results, costs = [], [], dict.fromkeys((NO_ATTACK, *attacks), 0.0)
        unavailable: dict[str, str] = {}
        clock = time.perf_counter()
        for variant in tqdm(_variants(target, attacks, unavailable), desc=f"attacking {name}"):
            if variant.loaded is None:
                scores = metrics = variant.scores
            else:
                # Before its first step an attack has changed nothing: its batches may be there already.
                label = NO_ATTACK if variant.budget == 0 else f"{variant.attack}-{variant.name}"
                scores = score(
                    variant.loaded.model,
                    variant.loaded.processor,
                    variant.samples,
                    batch_size=scoring.batch_size,
                    max_new_tokens=scoring.max_new_tokens,
                    share_prefix=scoring.share_prefix,
                    style=style,
                    cache=target.cache(label),
                )
                metrics = with_metrics(scores)
            labels = {"attack": variant.attack, "variant": variant.name, "budget": variant.budget}
            tables.append(scores.assign(model=name, benchmark=target.benchmark, **labels))
            results.append(labels | {"rows": len(scores), "metrics": summarise(metrics)})
            costs[variant.attack] += time.perf_counter() - clock
            clock = time.perf_counter()
        scored = pd.concat(tables, ignore_index=True).astype({"budget": "Int64"})
        with writing(path) as partial:
            scored.to_parquet(partial, index=False)
        summary = {"model": name, "digest": digest(inputs["model"]), "rows": len(scored)}
        summary |= {"settings": settings, "results": results, "floors": target.floors}
        write_json(path.with_suffix(".json"), summary | {"unavailable": unavailable})
        seconds = {attack: round(cost, 1) for attack, cost in costs.items() if cost}
        record.summary = {"variants": len(results), "unavailable": unavailable, "seconds": seconds}
        target.cache("").remove()
    retrained = path.with_name("retrained.parquet")  # only for these lines: no file holds the distance
    reference = pd.read_parquet(retrained) if name != "retrained" and retrained.is_file() else None
    for outcome in attack_outcomes(scored, reference, metrics=("exact_match",)):
        value, gap = outcome.values.get("exact_match"), outcome.gap("exact_match")
        attack = outcome.attack
        after = "unattacked" if attack == NO_ATTACK else f"after {attack}, {outcome.variant}"
        match = "not available" if value is None else f"{value:.2f}"
        distance = "" if gap is None else f", {gap:+.2f} from retrained"
        typer.echo(f"attack: {name}, {after}: exact match by picture {match}{distance}")
    for attack, reason in unavailable.items():
        typer.echo(f"attack: {name}, {attack}: not available: {reason}")
    if reference is not None:
        if worst := worst_attack(scored, reference):
            typer.echo(f"attack: {name}, after the worst attack: {worst.sentence}")
    elif name != "retrained":
        typer.echo(
            "attack: the distance to retrained counts; attack it too: python -m tasks attack retrained"
        )


def _variants(target: Target, attacks: list[str], unavailable: dict[str, str]) -> Iterator[Variant]:
    """The model unattacked, then every variant of each attack; at most two models are loaded at once.

    Attacks without what they need go into `unavailable`, with the reason and what to do.
    """
    yield Variant(NO_ATTACK, NO_ATTACK, target.intact, target.samples)
    for attack in attacks:
        try:
            for variant in VARIANTS[attack](target):
                if variant.samples:
                    yield variant
                else:
                    unavailable[f"{attack}, {variant.name}"] = NEEDS[attack]
        except UnavailableAttack as error:
            unavailable[attack] = str(error)


def _reword(target: Target) -> Iterator[Variant]:
    from efface.attacks.prompts import reword

    section, earlier = target.params.attack.reword, []
    if section.lists:
        yield from _listed(target, "reword", section.lists)
        return
    for number in range(section.variants):
        samples = reword(target.samples, target.names, benchmark=target.benchmark, number=number)
        if samples in earlier:  # no more words than that
            return
        earlier.append(samples)
        yield Variant("reword", f"wording {number + 1}", target.intact, samples)


def _language(target: Target) -> Iterator[Variant]:
    lists = target.params.attack.language.lists
    if not lists:
        raise UnavailableAttack(
            "attack.language.lists is empty: expected a mapping from each language to a mapping from the "
            "questions, as they stand in the table, to their translations"
        )
    yield from _listed(target, "language", lists)


def _listed(target: Target, attack: str, lists: Mapping[str, Mapping[str, str]]) -> Iterator[Variant]:
    from efface.attacks.prompts import listed, require_words

    for name, words in lists.items():
        require_words(target.intact.processor, words.values())
        yield Variant(attack, name, target.intact, listed(target.samples, words))


def _in_context(target: Target) -> Iterator[Variant]:
    from efface.attacks.prompts import in_context

    section, seed = target.params.attack.in_context, target.params.seed
    others = read_samples(target.table, set="retain", modality="text")
    for kind in section.kinds:
        samples = in_context(target.samples, others, kind=kind, shots=section.shots, seed=seed)
        yield Variant("in_context", kind, target.intact, samples)


def _jailbreak(target: Target) -> Iterator[Variant]:
    from efface.attacks.prompts import QUESTION, jailbreak, jailbreak_prompts, require_words

    for name, prompt in (target.params.attack.jailbreak.prompts or jailbreak_prompts()).items():
        require_words(target.intact.processor, [prompt.replace(QUESTION, "")])
        yield Variant("jailbreak", name, target.intact, jailbreak(target.samples, prompt))


def _cross_modal(target: Target) -> Iterator[Variant]:
    from efface.attacks.inputs import cross_modal

    for kind in target.params.attack.cross_modal.kinds:
        samples = cross_modal(target.samples, target.names, kind=kind)
        yield Variant("cross_modal", kind, target.intact, samples)


def _typographic(target: Target) -> Iterator[Variant]:
    from efface.attacks.inputs import READ_PICTURE, typographic
    from efface.attacks.prompts import require_words

    require_words(target.intact.processor, [READ_PICTURE])
    for kind in target.params.attack.typographic.kinds:
        samples = typographic(target.samples, target.names, kind=kind)
        yield Variant("typographic", kind, target.intact, samples)


def _image_shift(target: Target) -> Iterator[Variant]:
    from efface.attacks.inputs import image_shift

    for kind in target.params.attack.image_shift.kinds:
        samples = image_shift(target.samples, kind=kind, seed=target.params.seed)
        yield Variant("image_shift", kind, target.intact, samples)


def _probe(target: Target) -> Iterator[Variant]:
    """Scores of probes of this model; those of the base model and of guessing become floors."""
    import pandas as pd

    from efface.attacks.probe import chance, probe, probe_samples
    from efface.encoding import draw

    section = target.params.attack.probe
    known = read_samples(target.table, split="retain")
    train, test, values = probe_samples(known, target.samples)
    train = [train[i] for i in draw(len(train), section.samples, target.params.seed)]

    def probed(key: str) -> pd.DataFrame:
        cache = target.cache(f"probe of {key}")
        stored = cache.load(test)
        if stored is None:
            loaded = target.intact if key == "model" else target.load(key)
            results = probe(
                loaded.model,
                loaded.processor,
                train,
                test,
                values,
                layers=section.layers,
                penalty=section.penalty,
                batch_size=target.params.evaluate.batch_size,
            )
            stored = [
                dict(zip(results, map(float, hits), strict=True))
                for hits in zip(*results.values(), strict=True)
            ]
            cache.save(test, stored)
        return pd.DataFrame(stored).astype("Float64")

    about = pd.DataFrame([sample.row() for sample in test]).rename(columns={"answer": "gold"})
    about = about.drop(columns=["image", "options", "paraphrase", "wrong_answers", "split"])
    floors = {name: float(column.mean()) for name, column in probed("base").items()}
    for name, column in probed("model").items():
        target.floors[str(name)] = {"chance": chance(test, values), "base": floors[name]}
        yield Variant("probe", str(name), None, test, scores=about.assign(exact_match=column))


def _soft_prompt(target: Target) -> Iterator[Variant]:
    from efface.attacks.relearn import split_people
    from efface.attacks.soft_prompt import optimise, unused_word

    section, seed, loaded = target.params.attack.soft_prompt, target.params.seed, target.intact
    train_people, _ = split_people([s.entity_id for s in target.samples], share=section.share, seed=seed)
    facts = read_samples(target.table, split="forget", part="train")
    word = unused_word(loaded.processor, [*facts, *target.samples], section.length)
    for budget, prompt in optimise(
        loaded.model,
        loaded.processor,
        [sample for sample in facts if sample.entity_id in train_people],
        word=word,
        budgets=section.budgets,
        length=section.length,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        seed=seed,
    ):
        samples = [sample for sample in target.samples if sample.entity_id not in train_people]
        if budget == 0:
            yield Variant("soft_prompt", "0 steps", loaded, samples, budget)
            continue
        with prompt.active(loaded.model):
            yield Variant("soft_prompt", f"{budget} steps", loaded, prompt.put_to(samples), budget)


def _relearn(target: Target) -> Iterator[Variant]:
    from efface.attacks.relearn import split_people

    section, seed = target.params.attack.relearn, target.params.seed
    people = [sample.entity_id for sample in target.samples]
    train_people, _ = split_people(people, share=section.share, seed=seed)
    facts = read_samples(target.table, split="forget", part="train")
    facts = [sample for sample in facts if sample.entity_id in train_people]
    unseen = [sample for sample in target.samples if sample.entity_id not in train_people]
    yield from _finetuned(target, "relearn", facts, unseen)


def _benign_relearn(target: Target) -> Iterator[Variant]:
    data = target.params.attack.benign_relearn.data
    facts = read_samples(
        target.table, split="retain" if data == "retain" else ("real", "utility"), part="train"
    )
    if not facts:
        raise UnavailableAttack(
            f"attack.benign_relearn.data is {data!r}, and the benchmark has no such rows to train on: "
            "expected the other of retain and skills"
        )
    yield from _finetuned(target, "benign_relearn", facts, target.samples)


def _finetuned(
    target: Target, attack: str, facts: list[Sample], questions: list[Sample]
) -> Iterator[Variant]:
    from efface.attacks.relearn import relearn

    settings = getattr(target.params.attack, attack)
    loaded = target.fresh()
    for budget in relearn(
        loaded.model,
        loaded.processor,
        facts,
        budgets=settings.budgets,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=target.params.seed,
    ):
        yield Variant(attack, f"{budget} steps", loaded, questions, budget)


def _quantize(target: Target) -> Iterator[Variant]:
    from efface.attacks.weights import quantize

    for bits in target.params.attack.quantize.bits:
        fresh = target.fresh()
        quantize(fresh.model, bits=bits)
        yield Variant("quantize", f"{bits} bits", fresh, target.samples)


def _module_reload(target: Target) -> Iterator[Variant]:
    from efface.attacks.weights import reload_part

    source = target.load("vanilla", device="cpu")
    for part in target.params.attack.module_reload.parts:
        fresh = target.fresh()
        reload_part(fresh.model, source.model, part=part)
        yield Variant("module_reload", part, fresh, target.samples)


VARIANTS: dict[str, Callable[[Target], Iterator[Variant]]] = {
    "reword": _reword,
    "in_context": _in_context,
    "jailbreak": _jailbreak,
    "language": _language,
    "cross_modal": _cross_modal,
    "typographic": _typographic,
    "image_shift": _image_shift,
    "probe": _probe,
    "soft_prompt": _soft_prompt,
    "relearn": _relearn,
    "benign_relearn": _benign_relearn,
    "quantize": _quantize,
    "module_reload": _module_reload,
}
