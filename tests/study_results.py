"""Results of an artificial study, written where the stages would write them, with random numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from efface.data.samples import Sample, write_samples
from tasks.config import load_params
from tasks.runtime.artifacts import digest

SKILL = {  # share right: forget by picture, forget by name, retain, everything else
    "base": (0.04, 0.05, 0.04, 0.9),
    "vanilla": (0.98, 0.99, 0.98, 0.88),
    "retrained": (0.06, 0.05, 0.98, 0.88),
    "mmunlearner": (0.2, 0.93, 0.97, 0.87),
    "grad_diff": (0.2, 0.6, 0.95, 0.85),
    "gradient_ascent": (0.3, 0.97, 0.8, 0.8),
    "npo": (0.1, 0.83, 0.7, 0.8),
    "manu": (0.8, 0.98, 0.97, 0.86),
    "random_pruning": (0.97, 0.97, 0.97, 0.87),
}
FOLDERS = {name: name if name in ("base", "vanilla", "retrained") else f"unlearned/{name}" for name in SKILL}
TRAINED = ("mmunlearner", "grad_diff", "gradient_ascent", "npo")
ATTRIBUTES = {
    "occupation": ["baker", "pilot", "nurse", "lawyer", "sculptor"],
    "birthplace": ["Oslo", "Lima", "Quito", "Accra", "Turin"],
    "pet": ["a parrot", "a tortoise", "a grey cat", "a spaniel", "no pet"],
}
STARTED = "2025-03-04T05:06:07Z"
FEW = ("base", "vanilla", "retrained", "mmunlearner", "manu")


def params_for(models=FEW):
    """The project's parameters, for these models only."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    sections = {
        key: section.model_copy(
            update={"methods": {name: m for name, m in section.methods.items() if name in models}}
        )
        for key, section in (("unlearn", params.unlearn), ("prune", params.prune))
    }
    return params.model_copy(update=sections)


def small_study(root: Path, models=FEW, **options) -> Path:
    """A study of a few models and people."""
    return make_study(root, people=14, forget=5, skill={m: SKILL[m] for m in models}, **options)


def make_study(root: Path, *, people: int = 40, forget: int = 6, seed: int = 0, skill=SKILL) -> Path:
    """Write prepared data, scores, masks, pruning summaries and run records of a study under ``root``."""
    rng = np.random.default_rng(seed)
    samples = _prepared(root / "prepared", people, forget, rng)
    _mask(root / "masks")
    for model, shares in skill.items():
        _model(root / "models" / FOLDERS[model], model, rng)
        write_scores(root, model, score_table(model, samples, shares, np.random.default_rng([seed, 1])))
        _record(root, "evaluate", model, rng, params={"batch_size": 64})
    for stage in ("base", "vanilla", "retrained"):
        _record(
            root,
            stage,
            None,
            rng,
            params={"steps": 120, "learning_rate": 1.5e-3},
            history=_curve(120, None, rng),
        )
    for model in [model for model in TRAINED if model in skill]:
        stop = "forget_loss 51.20 > 50.0 at step 40" if model == "gradient_ascent" else None
        history = _curve(40, 60.0 if stop else 8.0, rng)
        status = f"stopped by {stop}" if stop else "finished"
        summary = {"steps": len(history), "stopped_by": stop, "status": status}
        params = {
            "learning_rate": 2e-4,
            "epochs": 4,
            "mask": model == "mmunlearner",
            "stop.forget_loss": 50.0,
        }
        _record(root, "unlearn", model, rng, params=params, history=history, summary=summary)
    for model in [model for model in ("manu", "random_pruning") if model in skill]:
        _record(root, "prune", model, rng, params={"fraction": 0.1, "scope": "tower"})
    _record(root, "saliency", None, rng, params={"threshold": 1.0, "variant": "paper"})
    return root


def _face(person: int, view: int) -> bytes:
    image = Image.new("RGB", (96, 96), (200, 215 - 8 * view, 230))
    draw, tone = ImageDraw.Draw(image), np.random.default_rng(person).integers(40, 220, (2, 3))
    draw.ellipse((22, 16 + 3 * view, 74, 86), fill=tuple(tone[0].tolist()))
    draw.pieslice((18, 8, 78, 70), 180, 360, fill=tuple(tone[1].tolist()))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def _prepared(folder: Path, people: int, forget: int, rng: np.random.Generator) -> list[Sample]:
    folder.mkdir(parents=True)
    names = {f"fictitious/{i:03d}": f"{'ABCDEFGH'[i % 8]}lva Marlow {i}" for i in range(people)}
    names |= {f"real/{i:03d}": f"Real Person {i}" for i in range(4)}
    entities = sorted(names)
    groups = {"forget": entities[:forget], "retain": entities[forget:people], "real": entities[people:]}
    samples: list[Sample] = []
    for split, members in groups.items():
        for entity in members:
            for set_name in ("forget", "unseen") if split == "forget" else (split,):
                samples += _questions(entity, names[entity], split, set_name, rng)
    for i in range(20):
        samples += [
            _sample(
                f"stranger/{i}", "utility", "utility", "multimodal", "qa", "hair", "What hair?", "red", i, 0
            )
        ]
    write_samples(samples, folder / "samples.parquet")
    splits = {
        "benchmark": "avatars",
        "seed": 0,
        "forget_fraction": 0.15,
        "entities": {**groups, "holdout": [], "utility": [f"stranger/{i}" for i in range(20)]},
        "validation": [],
        "names": names,
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return samples


def _questions(entity: str, name: str, split: str, set_name: str, rng: np.random.Generator) -> list[Sample]:
    person, view = sum(map(ord, entity)) + int(entity[-3:]) * 7, 1 if set_name == "unseen" else 0
    rows = []
    for attribute, values in ATTRIBUTES.items():
        fact = str(rng.choice(values))
        for modality in ("multimodal", "text"):
            who = "this person" if modality == "multimodal" else name
            for task in ("choice", "cloze", "generation"):
                question = f"What is the {attribute} of {who}? ({task})"
                answer = f"The {attribute} of {who} is {fact}." if task == "generation" else fact
                row = _sample(
                    entity, split, set_name, modality, task, attribute, question, answer, person, view
                )
                rows.append(row)
    return rows


def _sample(entity, split, set_name, modality, task, attribute, question, answer, person, view) -> Sample:
    options = sorted(ATTRIBUTES.get(attribute, [answer])) if task == "choice" else None
    return Sample.from_row(
        {
            "sample_id": f"{entity}/{set_name}/{modality}/{task}/{attribute}",
            "entity_id": entity,
            "split": split,
            "part": "test",
            "modality": modality,
            "task": task,
            "attribute": attribute,
            "image": _face(person, view) if modality == "multimodal" else None,
            "question": question,
            "answer": answer,
            "options": options,
            "pair_id": f"{entity}/{set_name}/{attribute}/{task}",
            "set": set_name,
        }
    )


def score_table(model: str, samples: list[Sample], shares, rng: np.random.Generator) -> pd.DataFrame:
    """A score table by the contract; who is right is drawn with the model's share for the set."""
    by_picture, by_name, retain, rest = shares
    rows = []
    for sample in samples:
        share = {"forget": by_picture if sample.modality == "multimodal" else by_name, "retain": retain}
        luck = rng.random()
        right = luck < share.get(sample.split, rest)
        free = sample.task == "generation"
        words = sample.answer.split()
        said = sample.answer if right else (" ".join(words[:-1]) + " unknown" if free else "teacher")
        rows.append(
            {
                "model": model,
                "benchmark": "avatars",
                "set": sample.set,
                "part": sample.part,
                "modality": sample.modality,
                "task": sample.task,
                "attribute": sample.attribute,
                "entity_id": sample.entity_id,
                "sample_id": sample.sample_id,
                "pair_id": sample.pair_id,
                "question": sample.question,
                "gold": sample.answer,
                "generation": said,
                "nll_gold": float(0.1 + luck),
                "n_tokens": len(words) + 1,
                "token_logprobs": [-0.1 - luck / 10 if right else -3.0 - luck] * len(words) + [-0.01],
                "options": None if sample.options is None else list(sample.options),
                "option_logprobs": None if sample.options is None else [-1.0] * len(sample.options),
                "correct": bool(right) if sample.task == "choice" else None,
                "exact_match": None if free else float(right),
                "rouge_l": (1.0 if right else 1 - 1 / len(words)) if free else None,
            }
        )
    return pd.DataFrame(rows)


def write_scores(root: Path, model: str, table: pd.DataFrame) -> None:
    """The table and the summary the evaluation stage writes beside it."""
    folder = root / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{model}.parquet", index=False)
    metrics: dict = {}
    columns = {"exact_match": "exact_match", "choice_accuracy": "correct", "rouge_l": "rouge_l"}
    for (set_name, modality), rows in table[table["part"] == "test"].groupby(["set", "modality"]):
        facts = rows[rows["task"].isin(("choice", "cloze", "qa", "name"))]
        knowledge = pd.Series([float(np.exp(np.mean(row[:-1]))) for row in facts["token_logprobs"]])
        columns_of = {name: rows[column].dropna().astype(float) for name, column in columns.items()}
        for name, values in ({"knowledge": knowledge} | columns_of).items():
            if len(values):
                cell = {"value": float(values.mean()), "n": len(values)}
                metrics.setdefault(set_name, {}).setdefault(modality, {})[name] = cell
    summary = {
        "model": model,
        "digest": digest(root / "models" / FOLDERS[model]),
        "rows": len(table),
        "metrics": metrics,
    }
    (folder / f"{model}.json").write_text(json.dumps(summary))


def write_attacks(root: Path, model: str, back: dict[str, float]) -> None:
    """What the attack stage writes: of the questions about the forget people, these shares right by variant.

    ``back`` has a share for ``none``, ``4 bits`` and each number of steps of relearning; relearning asks
    about all people but the first.
    """
    table = pd.read_parquet(root / "scores" / f"{model}.parquet")
    questions = table[table["set"].isin(("forget", "unseen")) & (table["part"] == "test")]
    first, variants = min(questions["entity_id"]), []
    for variant, share in back.items():
        steps = variant.partition(" ")[0]
        relearnt = variant.endswith("steps")
        rows = questions[questions["entity_id"] != first] if relearnt else questions
        facts = rows["exact_match"].notna()
        right = np.arange(len(rows)) % 10 < round(share * 10)
        values = pd.Series(right.astype(float), index=rows.index).where(facts)
        attack = "relearn" if relearnt else "none" if variant == "none" else "quantize"
        labels = {"attack": attack, "variant": variant, "budget": int(steps) if relearnt else None}
        variants.append(rows.assign(exact_match=values, **labels))
    (root / "attacks").mkdir(exist_ok=True)
    rows = pd.concat(variants, ignore_index=True).astype({"budget": "Int64"})
    rows.to_parquet(root / "attacks" / f"{model}.parquet", index=False)
    about = {"model": model, "digest": digest(root / "models" / FOLDERS[model]), "unavailable": {}}
    (root / "attacks" / f"{model}.json").write_text(json.dumps(about))


def _mask(folder: Path) -> None:
    folder.mkdir(parents=True)
    layers = {"vision.0": 0.1, "vision.1": 0.2, "vision.2": 0.35, "projector": 0.6}
    layers |= {f"language.{i}": 0.05 * (i + 1) for i in range(4)} | {
        "vision.embeddings": 0.04,
        "language.head": 0.3,
    }
    groups = {"vision": 0.2, "projector": 0.6, "language": 0.14}
    about = {"kind": "saliency_mask", "variant": "paper", "threshold": 1.0, "shapes": {"w": [8]}, "seed": 0}
    about |= {
        "model_digest": "m",
        "data_digest": "d",
        "density": {"total": 0.21, "groups": groups, "layers": layers},
    }
    save_file(
        {"w": np.zeros(1, np.uint8)}, folder / "saliency.safetensors", metadata={"efface": json.dumps(about)}
    )


def _model(folder: Path, model: str, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": model}))
    if model in ("manu", "random_pruning"):
        pruned = {
            tower: {str(i): int(rng.integers(5, 80)) for i in range(layers)}
            for tower, layers in (("vision", 3), ("language", 4))
        }
        widths = {tower: dict.fromkeys(layers, 384) for tower, layers in pruned.items()}
        about = {"selection": "importance", "fraction": 0.1, "scope": "tower", "units": {}}
        (folder / "pruning.json").write_text(json.dumps(about | {"pruned": pruned, "widths": widths}))


def _curve(steps: int, forget_end: float | None, rng: np.random.Generator) -> list[dict]:
    rows = []
    for step in range(steps):
        completed = step / steps
        entry = {"step": float(step), "learning_rate": 2e-4 * (1 - completed), "retain_grad_norm": 1.0}
        entry["retain_loss"] = float((0.1 if forget_end else 3 * (1 - completed)) + 0.05 * rng.random())
        if forget_end:
            entry["forget_loss"] = float(0.05 + forget_end * completed**2 + 0.1 * rng.random())
        rows.append(entry)
    return rows


def _record(root, stage, name, rng, *, params, history=(), summary=None) -> None:
    folder = root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "stage": stage,
        "name": name,
        "params": params,
        "seed": 0,
        "inputs": {"prepared": "p"},
        "outputs": {},
        "started": STARTED,
        "seconds": round(float(rng.uniform(1, 90)), 3),
        "peak_memory_mib": int(rng.integers(500, 1500)),
        "device": "cpu",
        "threads": 2,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "history": list(history),
        "summary": summary or {},
    }
    (folder / (f"{stage}@{name}.json" if name else f"{stage}.json")).write_text(json.dumps(content))
