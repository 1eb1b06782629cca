"""Stage `prepare`: the benchmark as one checked table of samples, and who belongs to which split."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from efface.data.benchmarks import READERS
from efface.data.benchmarks.reading import BadRows, BenchmarkData, Forgetting
from efface.data.samples import Sample, validated, write_samples
from efface.data.splits import draw_validation, with_people, with_validation
from efface.errors import DataError
from tasks.config import Params
from tasks.runtime.artifacts import write_json, writing


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `samples.parquet` and `splits.json` to `<root>/prepared`, whole or not at all.

    With `on_bad_row: skip` also `left_out.json`: every row that is not in the table, and why.
    """
    section, name = params.prepare, params.benchmark.name
    reader = importlib.import_module(READERS[name])
    forget, forgotten = section.forget_people, section.forgotten_people or []
    bad_rows = BadRows(section.on_bad_row)
    data = reader.read_benchmark(
        root / "benchmarks" / name,
        name=name,
        forget=Forgetting(
            section.forget_fraction, None if forget is None else (*forget, *forgotten), params.seed
        ),
        bad_rows=bad_rows,
    )
    if forget is not None:
        forget, forgotten = _entities(forget, data), _entities(forgotten, data)
        data = with_people(data, forget=forget, forgotten=forgotten)
    if not data.entities["forget"] or not data.entities["retain"]:
        raise DataError(
            f"{root / 'benchmarks' / name}: {len(data.entities['forget'])} people to forget and "
            f"{len(data.entities['retain'])} to retain are left; expected at least one of each"
        )
    validation = draw_validation(data.entities, fraction=section.validation_fraction, seed=params.seed)
    folder, counts = root / "prepared", Counter[str]()
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
        f"{folder}: {counts['train']} training and {counts.total() - counts['train']} evaluation samples; "
        f"{len(data.entities['forget']) - len(forgotten)} people to forget, "
        f"{len(data.entities['retain'])} to retain, "
        f"{len(validation)} of them for validation"
        + (f"; {left_out} bad rows left out, see {folder / 'left_out.json'}" if left_out else "")
    )


def _entities(people: list[str], data: BenchmarkData) -> list[str]:
    """Ids of these people; a benchmark of one's own may have them as its table writes them."""
    known = {*data.entities["forget"], *data.entities["retain"]}
    return [f"person/{person}" if f"person/{person}" in known else person for person in people]


def _counted(samples: Iterable[Sample], counts: Counter[str]) -> Iterator[Sample]:
    for sample in samples:
        counts[sample.part] += 1
        yield sample
