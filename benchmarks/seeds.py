"""The sandbox's methods over several seeds: python -m benchmarks.seeds --seeds 0,1,2

Each seed draws other people, other initial weights and other batches, and runs every stage from nothing with
the settings of params.yaml, in a folder of its own. A stage that has its record there is not run again.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from tasks import environment
from tasks.params import Params, load_params

environment.apply()

COLUMNS = {
    "forget VQA": ("forget", "multimodal"),
    "unseen VQA": ("test", "multimodal"),
    "forget text": ("forget", "text"),
    "retain VQA": ("retain", "multimodal"),
    "retain text": ("retain", "text"),
    "real VQA": ("real", "multimodal"),
    "skills": ("utility", "multimodal"),
}
"""Exact match by set and modality."""


def with_seed(params: Params, seed: int) -> Params:
    """The parameters with another seed for people, weights and batches."""
    return params.model_copy(
        update={"seed": seed, "avatars": params.avatars.model_copy(update={"seed": seed})}
    )


def run_seed(params: Params, root: Path) -> None:
    """Run every stage up to the scores that has no record under ``root`` yet."""
    stages: list[tuple[str, str | None]] = [
        (stage, None)
        for stage in ("benchmark", "prepare", "base", "vanilla", "retrained", "saliency", "importance")
    ]
    stages += [("prune", name) for name in params.prune.methods]
    stages += [("unlearn", name) for name in params.unlearn.methods]
    stages += [("evaluate", name) for name in params.evaluate.models]
    for stage, name in stages:
        done = {"benchmark": root / "benchmarks" / params.benchmark.name, "prepare": root / "prepared"}
        mark = done.get(stage, root / "runs" / (f"{stage}@{name}.json" if name else f"{stage}.json"))
        if not mark.exists():
            importlib.import_module(f"tasks.{stage}").run(params, *([name] if name else []), root=root)


def read(root: Path, model: str) -> list[float]:
    """The model's exact match in each column."""
    metrics = json.loads((root / "scores" / f"{model}.json").read_text())["metrics"]
    return [metrics[kind][modality]["exact_match"]["value"] for kind, modality in COLUMNS.values()]


def table(roots: list[Path], models: list[str]) -> str:
    """Mean over seeds, with the least and the greatest in brackets, as Markdown."""
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for model in models:
        columns = zip(*(read(root, model) for root in roots), strict=True)
        cells = [f"{statistics.mean(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    workspace: Annotated[Path, typer.Option(help="Where each seed keeps its files.")] = Path(".benchmarks"),
) -> None:
    """Run all seeds and print the table."""
    params = load_params()
    numbers = [int(seed) for seed in seeds.split(",")]
    folder = workspace / params.avatars.profile
    roots = [folder / f"seed-{seed}" for seed in numbers]
    for seed, root in zip(numbers, roots, strict=True):
        run_seed(with_seed(params, seed), root)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    typer.echo(
        f"profile {params.avatars.profile}, seeds {seeds}, commit {commit.stdout.strip()}; exact match"
    )
    typer.echo(table(roots, list(params.evaluate.models)))


if __name__ == "__main__":
    typer.run(main)
