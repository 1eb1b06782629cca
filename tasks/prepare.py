"""Stage `prepare`: the benchmark as one checked table of samples, and who belongs to which split."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer

from efface.data.benchmarks import READERS
from efface.data.samples import validate, write_samples
from efface.data.splits import draw_validation, with_validation
from tasks.artifacts import write_json, writing
from tasks.params import Params


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `samples.parquet` and `splits.json` to `<root>/prepared`, whole or not at all."""
    section = params.prepare
    reader = importlib.import_module(READERS[section.benchmark])
    data = reader.read_benchmark(
        root / "benchmarks" / section.benchmark,
        name=section.benchmark,
        forget_percent=round(100 * section.forget_fraction),
    )
    people = draw_validation(data.entities, fraction=section.validation_fraction, seed=params.seed)
    samples = validate(with_validation(data.samples, people))
    folder = root / "prepared"
    with writing(folder) as partial:
        write_samples(samples, partial / "samples.parquet")
        write_json(
            partial / "splits.json",
            {
                "benchmark": section.benchmark,
                "seed": params.seed,
                "forget_fraction": section.forget_fraction,
                "entities": data.entities,
                "validation": people,
                "names": data.names,
            },
        )
    training = sum(sample.part == "train" for sample in samples)
    typer.echo(
        f"{folder}: {training} training and {len(samples) - training} evaluation samples; "
        f"{len(data.entities['forget'])} people to forget, {len(data.entities['retain'])} to retain, "
        f"{len(people)} of them for validation"
    )
