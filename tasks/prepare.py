"""Stage `prepare`: the benchmark as one checked table of samples, and who belongs to which split."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import typer

from efface.data.benchmarks import READERS
from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection
from efface.data.names import resolve_people, similar_people
from efface.data.samples import MODALITIES, Sample, validated, write_samples
from efface.data.splits import draw_validation, with_people, with_validation
from efface.errors import DataError
from tasks.config import Params
from tasks.runtime.artifacts import write_json, writing
from tasks.runtime.purged import purge_filter


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `samples.parquet` and `splits.json` to `<root>/prepared`, whole or not at all.

    With `on_bad_row: skip` also `left_out.json`: every row that is not in the table, and why.
    """
    section, name = params.prepare, params.benchmark.name
    folder = root / "benchmarks" / name
    bad_rows = BadRows(section.on_bad_row)
    forget, forgotten = section.forget_people, section.forgotten_people or []
    people = None if forget is None else (*forget, *forgotten)
    data = importlib.import_module(READERS[name]).read_benchmark(
        folder,
        name=name,
        forget=ForgetSelection(section.forget_fraction, people, params.seed),
        bad_rows=bad_rows,
    )
    _check_similar_people(data, section.similar_people, folder)
    _check_purged(data, root, folder)
    if forget is not None:
        candidates = [*data.entities["forget"], *data.entities["retain"]]
        forget, forgotten = (resolve_people(typed, candidates, data.names) for typed in (forget, forgotten))
        data = with_people(data, forget=forget, forgotten=forgotten)
    if not data.entities["forget"] or not data.entities["retain"]:
        raise DataError(
            f"{folder}: {len(data.entities['forget'])} people to forget and {len(data.entities['retain'])} "
            "to retain; expected at least one of each"
        )
    validation = draw_validation(data.entities, fraction=section.validation_fraction, seed=params.seed)
    folder, counts = root / "prepared", Counter[tuple[str, ...]]()
    with writing(folder) as partial:
        samples = _counted(validated(with_validation(data.samples, validation)), counts)
        write_samples(samples, partial / "samples.parquet")
        write_json(
            partial / "splits.json",
            {
                "benchmark": name,
                "seed": params.seed,
                "forget_fraction": section.forget_fraction,
                "entities": data.entities,
                "validation": validation,
                "names": data.names,
                **({"forgotten": sorted(forgotten)} if forgotten else {}),
            },
        )
        if section.on_bad_row == "skip":
            write_json(partial / "left_out.json", bad_rows.left_out)
    left_out = len(bad_rows.left_out)
    typer.echo(
        f"{folder}: {counts['train',]} training and {counts['test',] + counts['validation',]} evaluation "
        f"samples; {len(data.entities['forget']) - len(forgotten)} people to forget, "
        f"{len(data.entities['retain'])} to retain, "
        f"{len(validation)} of them for validation"
        + (f"; {left_out} bad rows left out, see {folder / 'left_out.json'}" if left_out else "")
    )
    if lacking := missing_rows(params, counts):
        lines = "\n".join(f"- {line}" for line in lacking)
        typer.echo(f"{folder}: no rows for some of what params.yaml configures:\n{lines}", err=True)


def _check_similar_people(data: BenchmarkData, policy: str, folder: Path) -> None:
    """One person under two spellings would be forgotten by half."""
    groups = similar_people([*data.entities["forget"], *data.entities["retain"]], data.names)
    if policy == "stop" and groups:
        listed = "; ".join(" and ".join(map(ascii, group)) for group in groups[:5])
        raise DataError(
            f"{folder}: {len(groups)} groups of people who are likely one person, spelled in several ways: "
            f"{listed}; use one spelling, or say that they are different people with prepare.similar_people: "
            "distinct"
        )


def _check_purged(data: BenchmarkData, root: Path, folder: Path) -> None:
    """Nobody whose data were purged comes back with the benchmark."""
    purged = purge_filter(root)
    if people := [person for members in data.entities.values() for person in members if purged(person)]:
        raise DataError(
            f"{folder}: {', '.join(people)} had their data purged on request; remove them from the "
            "benchmark's source (benchmark.roots), then run again"
        )


def missing_rows(params: Params, counts: Mapping[tuple[str, ...], int]) -> list[str]:
    """Configured methods and stages that the table has no rows for: which, why, and what to do about it.

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
            "test; add rows with part test, or lower prepare.validation_fraction"
        )
    return lines


def _counted(samples: Iterable[Sample], counts: Counter[tuple[str, ...]]) -> Iterator[Sample]:
    for sample in samples:
        counts[sample.part,] += 1
        counts[sample.split, sample.part, sample.modality] += 1
        counts[sample.split, "pairs"] += bool(
            sample.part == "train" and sample.modality == "multimodal" and sample.pair_id
        )
        yield sample
