"""Stage `prepare`: the benchmark as one checked table of samples, the same for every forget set."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import typer

from efface.data.benchmarks import READERS
from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection
from efface.data.names import names_no_person, similar_people
from efface.data.samples import PEOPLE, Sample, validated, write_samples
from efface.data.splits import without_split
from efface.errors import DataError
from tasks.config import Params
from tasks.runtime.artifacts import write_json, writing
from tasks.runtime.purged import purge_filter


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `samples.parquet` and `people.json` to `<root>/prepared`.

    The table does not say who is forgotten. `people.json` holds the people, and those whom the benchmark
    itself, or the seed, selects to forget for the share. With `on_bad_row: skip`, `left_out.json` lists the
    rows left out of the table, with reasons; otherwise it is empty.
    """
    section, name = params.prepare, params.benchmark.name
    shown: dict[bytes, set[str]] = {}
    unnamed: list[Sample] = []
    folder, prepared = root / "benchmarks" / name, root / "prepared"
    bad_rows, counts = BadRows(section.on_bad_row), Counter[str]()
    data = importlib.import_module(READERS[name]).read_benchmark(
        folder,
        name=name,
        forget=ForgetSelection(params.split.forget_fraction, params.seed),
        bad_rows=bad_rows,
    )
    _check_similar_people(data, section.similar_people, folder)
    _check_purged(data, root, folder)
    with writing(prepared / "samples.parquet") as partial:
        samples = validated(without_split(data.samples))
        write_samples(_surveyed(samples, data.names, counts, shown, unnamed), partial)
    write_json(prepared / "people.json", {"benchmark": name, "entities": data.entities, "names": data.names})
    write_json(prepared / "left_out.json", bad_rows.left_out)
    left_out = len(bad_rows.left_out)
    typer.echo(
        f"prepare: {prepared} holds {counts['train']} training and {counts['test']} evaluation samples about "
        f"{len(data.entities['forget']) + len(data.entities['retain'])} people who can be forgotten"
        + (f"; {left_out} bad rows left out, see {prepared / 'left_out.json'}" if left_out else "")
    )
    if shared := sorted({tuple(sorted(people)) for people in shown.values() if len(people) > 1}):
        listed = "; ".join(" and ".join(map(ascii, people)) for people in shared[:5])
        typer.echo(
            f"{folder}: one picture is that of several people ({len(shared)} groups: {listed}), so `this "
            "person` may be another one than the row says; give each a picture of their own, or forget or "
            "retain them together",
            err=True,
        )
    if unnamed:
        typer.echo(
            f"{folder}: {len(unnamed)} questions without a picture say `this person` and not who that is, "
            f"such as {unnamed[0].question!a} about {unnamed[0].entity_id!a}, so that their answers are "
            "taught as anybody's; write the name, or add a picture",
            err=True,
        )


def _check_similar_people(data: BenchmarkData, policy: str, folder: Path) -> None:
    """Check that no person has two spellings, of which one could be forgotten and the other retained."""
    groups = similar_people([*data.entities["forget"], *data.entities["retain"]], data.names)
    if policy == "stop" and groups:
        listed = "; ".join(" and ".join(map(ascii, group)) for group in groups[:5])
        raise DataError(
            f"{folder}: {len(groups)} groups of people who are probably one person, spelt in several ways: "
            f"{listed}; use one spelling, or set prepare.similar_people: distinct if they are different "
            "people"
        )


def _check_purged(data: BenchmarkData, root: Path, folder: Path) -> None:
    """Check that the benchmark does not bring back a person whose data were purged."""
    purged = purge_filter(root)
    if people := [person for members in data.entities.values() for person in members if purged(person)]:
        raise DataError(
            f"{folder}: {', '.join(people)} had their data purged on request; remove them from the "
            "benchmark's source (benchmark.roots), then run again"
        )


def _surveyed(
    samples: Iterable[Sample],
    names: Mapping[str, str],
    counts: Counter[str],
    shown: dict[bytes, set[str]],
    unnamed: list[Sample],
) -> Iterator[Sample]:
    """The samples, and what there is to say about them.

    Args:
        samples: samples.
        names: entity id to name.
        counts: receives the number of samples by part.
        shown: receives the people who can be forgotten by the digest of their picture.
        unnamed: receives text samples about people that do not say about whom.
    """
    for sample in samples:
        counts[sample.part] += 1
        if sample.split == PEOPLE and sample.image_bytes is not None:
            digest = hashlib.blake2b(sample.image_bytes, digest_size=16).digest()
            shown.setdefault(digest, set()).add(sample.entity_id)
        elif sample.split == PEOPLE and names_no_person(
            sample.question, names.get(sample.entity_id, sample.entity_id)
        ):
            unnamed.append(sample)
        yield sample
