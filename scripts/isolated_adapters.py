"""Successive forget requests with one adapter each behind a router: a filter, to compare other methods with.

    python -m scripts.isolated_adapters [--rounds 5] [--people 2] [--method grad_diff]

Each request trains LoRA factors of its own on the first vanilla model (LUMoE, arXiv:2606.12809), and the
router sends a picture to the adapter of the person whose training picture is nearest (`thumbnail`), any other
to vanilla. The weights keep every fact: without the router all of them are back. The people are those of
scripts.sequential_requests, in a clone of the project. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from efface.data.samples import Sample, read_samples
from efface.evaluation.side_effects import thumbnail
from scripts.sequential_requests import clone_project, run, two_digits
from tasks.runtime.results import read_scores

COLUMNS = ("request", "routed to its adapter: seen / unseen", "forget: seen / unseen", "without the router")
PICTURED = {"forget": "seen", "unseen": "unseen"}
"""Sets of questions by picture about people to forget."""
LORA = "unlearn.lora={rank: 16, alpha: 32, components: [language, projector, vision]}"


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Requests, each with an adapter.")] = 5,
    people: Annotated[int, typer.Option(min=1, help="People in each.")] = 2,
    method: Annotated[str, typer.Option(help="Name in unlearn.methods.")] = "grad_diff",
    work: Annotated[Path, typer.Option(help="Folder of the clone.")] = Path(".scripts/adapters"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A value of params.yaml; repeatable.")
    ] = None,
) -> None:
    """Print a row per request, and what is retained of the others."""
    entities = json.loads(Path("data/prepared/splits.json").read_text())["entities"]
    subjects = random.Random(0).sample(sorted([*entities["forget"], *entities["retain"]]), rounds * people)
    requests = [subjects[first : first + people] for first in range(0, len(subjects), people)]
    tables = [scores_of(work, request, method, settings or []) for request in requests]
    adapters = {person: number for number, request in enumerate(requests) for person in request}
    people_seen = recognised(read_samples(work / "data/prepared/samples.parquet", modality="multimodal"))
    routes = {sample: adapters.get(person) for sample, person in people_seen.items()}
    typer.echo(f"| {' | '.join(COLUMNS)} |\n|---|" + "---:|" * (len(COLUMNS) - 1))
    for number, (adapter, vanilla) in enumerate(tables):
        typer.echo(f"| {' | '.join(row(number, requests[number], adapter, vanilla, routes))} |")
    typer.echo(f"\nretain, share of vanilla: {retained(tables, adapters, routes):.2f}")


def scores_of(
    work: Path, people: Sequence[str], method: str, settings: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a model with the adapter of a request, and of vanilla, by sample."""
    request = [f"split.forget_people={json.dumps(list(people))}", "split.validation_fraction=0.0"]
    clone_project(work, [*request, "evaluate.max_people=null", LORA, *settings])
    run(work, "dvc", "repro", f"evaluate_unlearned@{method}", "evaluate@vanilla")
    adapter, vanilla = (
        read_scores(work / "data", name)[0].set_index("sample_id") for name in (method, "vanilla")
    )
    return adapter, vanilla


def recognised(samples: Sequence[Sample]) -> dict[str, str]:
    """The person of the nearest training picture, for every test question with a picture."""
    pictures = {sample.sample_id: sample.image for sample in samples}
    features = {sample: thumbnail(picture) for sample, picture in pictures.items() if picture is not None}
    trained = [s for s in samples if s.part == "train" and s.sample_id in features and s.entity_id]
    gallery = np.stack([features[sample.sample_id] for sample in trained])
    nearest = {}
    for sample in samples:
        if sample.part != "train" and sample.sample_id in features:
            distances = np.square(gallery - features[sample.sample_id]).sum(axis=1)
            nearest[sample.sample_id] = str(trained[int(distances.argmin())].entity_id)
    return nearest


def row(
    number: int,
    people: Sequence[str],
    adapter: pd.DataFrame,
    vanilla: pd.DataFrame,
    routes: Mapping[str, int | None],
) -> list[str]:
    """The cells of one request. A picture that goes elsewhere counts with vanilla's answer."""
    routed, forget, plain = [], [], []
    for name in PICTURED:
        about = vanilla[(vanilla["set"] == name) & (vanilla["modality"] == "multimodal")]
        answers = vanilla.loc[about.index, "exact_match"]
        right = pd.Series([routes[sample] == number for sample in about.index], index=about.index)
        routed.append(right.mean())
        forget.append(answers.where(~right, adapter.loc[about.index, "exact_match"]).mean())
        plain.append(answers.mean())
    cells = (" / ".join(map(two_digits, values)) for values in (routed, forget, plain))
    return [f"round-{number + 1} ({len(people)} people)", *cells]


def retained(
    tables: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    adapters: Mapping[str, int],
    routes: Mapping[str, int | None],
) -> float:
    """Share of vanilla's exact answers by picture about people in no request."""
    vanilla = tables[0][1]
    about = vanilla[(vanilla["set"] == "retain") & (vanilla["modality"] == "multimodal")]
    about = about[~about["entity_id"].isin(list(adapters)) & about["exact_match"].notna()]
    values = []
    for sample, answer in about["exact_match"].items():
        number = routes[str(sample)]
        values.append(answer if number is None else tables[number][0].at[sample, "exact_match"])
    return float(pd.Series(values, dtype=float).mean() / about["exact_match"].mean())


if __name__ == "__main__":
    typer.run(main)
