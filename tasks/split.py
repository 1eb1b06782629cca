"""Stage `split`: which people are forgotten, and which are set aside for validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import typer

from efface.data.names import resolve_people
from efface.data.samples import MODALITIES, PEOPLE, read_labels
from efface.data.splits import attributes_of, check_attributes, draw_fold, draw_validation
from efface.errors import DataError
from tasks.config import Params
from tasks.runtime.artifacts import read_json, write_json


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `<root>/prepared/splits.json`: the people of each split, and those set aside for validation."""
    section, prepared = params.split, root / "prepared"
    about = read_json(prepared / "people.json")
    entities, names = about["entities"], about["names"]
    people = sorted([*entities["forget"], *entities["retain"]])
    forget, forgotten, attributes = entities["forget"], [], section.forget_attributes or {}
    if section.folds is not None:
        forget = draw_fold(
            _taught_and_asked(prepared), folds=section.folds, fold=section.fold, seed=params.seed
        )
    elif section.forget_people is not None:
        forget = resolve_people(section.forget_people, people, names)
        forgotten = resolve_people(section.forgotten_people or [], people, names)
        if twice := sorted({*forget} & {*forgotten}):
            raise DataError(
                f"{', '.join(twice)}: both in forget_people and in forgotten_people; expected one"
            )
    if strangers := sorted({*attributes} - {*forget, *forgotten}):
        raise DataError(
            f"split.forget_attributes names {', '.join(strangers)}: expected ids of people in "
            "forget_people or forgotten_people"
        )
    check_attributes(attributes, attributes_of(prepared))
    out = {*forget, *forgotten}
    entities |= {"forget": sorted(out), "retain": [person for person in people if person not in out]}
    if not forget or not entities["retain"]:
        raise DataError(
            f"{prepared}: {len(forget)} people to forget and {len(entities['retain'])} to retain; expected "
            "at least one of each"
        )
    validation = draw_validation(entities, fraction=section.validation_fraction, seed=params.seed)
    path = prepared / "splits.json"
    write_json(
        path,
        {
            "benchmark": about["benchmark"],
            "seed": params.seed,
            "forget_fraction": section.forget_fraction,
            "entities": entities,
            "validation": validation,
            "names": names,
            **({"forgotten": sorted(forgotten)} if forgotten else {}),
            **({"attributes": {e: sorted(attributes[e]) for e in sorted(attributes)}} if attributes else {}),
            **({"folds": section.folds, "fold": section.fold} if section.folds else {}),
        },
    )
    typer.echo(
        f"split: {path} has {len(forget)} people to forget, {len(entities['retain'])} to retain, "
        f"{len(validation)} of them for validation"
    )
    lacking = missing_rows(params, _counts(prepared))
    untaught = sorted({*forget} - _taught(prepared, params.unlearn.forget))
    if 0 < len(untaught) < len({*forget}):  # of all, `missing_rows` says it
        listed = f"{', '.join(untaught[:5])}{', ...' if len(untaught) > 5 else ''}"
        lacking.append(
            f"unlearn.methods: {len(untaught)} of the people to forget have no training row of modality "
            f"{', '.join(params.unlearn.forget)}, so nothing trains a model to forget them: {listed}; add "
            "such rows, or name them in split.forgotten_people"
        )
    if lacking:
        lines = "\n".join(f"- {line}" for line in lacking)
        typer.echo(f"{prepared}: no rows for some of what params.yaml configures:\n{lines}", err=True)


def _taught_and_asked(prepared: Path) -> list[str]:
    """The people with both training and evaluation rows, whose forgetting can be measured."""
    parts: dict[str, set[str]] = {}
    for row in read_labels(prepared / "samples.parquet"):
        if row["split"] == PEOPLE:
            parts.setdefault(row["entity_id"], set()).add(row["part"])
    return sorted(person for person, of_person in parts.items() if len(of_person) > 1)


def _taught(prepared: Path, modalities: Collection[str]) -> set[str]:
    """The people with a training row of one of the modalities."""
    rows = read_labels(prepared / "samples.parquet")
    return {row["entity_id"] for row in rows if row["part"] == "train" and row["modality"] in modalities}


def _counts(prepared: Path) -> Counter[tuple[str, ...]]:
    """Samples of each (split, part, modality), and facts of each (split, "pairs")."""
    counts = Counter[tuple[str, ...]]()
    for row in read_labels(prepared):
        counts[row["split"], row["part"], row["modality"]] += 1
        counts[row["split"], "pairs"] += bool(
            row["part"] == "train" and row["modality"] == "multimodal" and row["pair_id"]
        )
    return counts


def missing_rows(params: Params, counts: Mapping[tuple[str, ...], int]) -> list[str]:
    """Configured methods and stages for which the table has no rows, each with the reason and a remedy.

    Args:
        params: all of params.yaml.
        counts: samples of each (split, part, modality), and of (split, "pairs").
    """
    trained = [name for name, method in params.unlearn.methods.items() if hasattr(method, "epochs")]
    masked = [name for name in trained if params.unlearn.methods[name].mask != "none"]
    lines = []
    if not any(counts.get(("forget", "train", modality)) for modality in params.unlearn.forget):
        has = [m for m in MODALITIES if counts.get(("forget", "train", m))]
        lines.append(
            f"unlearn.methods {', '.join(trained)}"
            + (f", stage saliency (for {', '.join(masked)})" if masked else "")
            + f": the forget people have no training row of modality {', '.join(params.unlearn.forget)}; "
            f"set unlearn.forget to [{', '.join(has)}], or add such rows"
        )
    worded = [name for name, method in params.unlearn.methods.items() if method.retain_text]
    if worded and not counts.get(("forget", "train", "text")):
        lines.append(
            f"unlearn.methods {', '.join(worded)}: retain_text is true and the forget people have no "
            "training row in text; set it to false, or add such rows"
        )
    without = [split for split in ("forget", "retain") if not counts.get((split, "pairs"))]
    if params.prune.methods and without:
        lines.append(
            f"prune.methods {', '.join(params.prune.methods)}, stage importance: the {' and '.join(without)} "
            "people have no fact both with a picture and in text; ask about `this person` in English and "
            "give the names of the people (column name), or remove the methods"
        )
    questions = [split for split in ("forget", "retain") if not counts.get((split, "test", "multimodal"))]
    if params.unlearn.curve is not None and questions:
        lines.append(
            f"unlearn.curve: the {' and '.join(questions)} people have no test question with a picture; set "
            "it to null, or add such rows"
        )
    silent = [s for s in ("forget", "retain") if not any(counts.get((s, "test", m)) for m in MODALITIES)]
    if silent:
        lines.append(
            f"evaluate, attack, report: the {' and '.join(silent)} people have no evaluation row of part "
            "test; add rows with part test, or lower split.validation_fraction"
        )
    return lines
