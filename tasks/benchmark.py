"""Stage `benchmark`: draw the avatars from their seed, or bring a benchmark into the project."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer

from efface.data.benchmarks import LAYOUTS, ROOTS
from tasks.config import Params
from tasks.runtime.artifacts import writing


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `<root>/benchmarks/<name>`, whole or not at all."""
    name = params.benchmark.name
    folder = root / "benchmarks" / name
    with writing(folder) as partial:
        said = _import(params, partial) if name in ROOTS else _generate(params, partial)
    typer.echo(f"{folder}: {said}")


def _generate(params: Params, folder: Path) -> str:
    from efface.data.benchmarks.avatars.generate import Sizes, generate

    section = params.avatars
    sizes = Sizes(
        people=section.people,
        real=section.real,
        holdout=section.holdout,
        train_views=section.train_views,
        test_views=section.test_views,
        stranger_pictures=section.stranger_pictures,
        skill_samples=section.skill_samples,
        picture_size=section.picture_size,
    )
    generate(folder, seed=section.seed, sizes=sizes)
    return (
        f"{sizes.people} fictitious, {sizes.real} real and {sizes.holdout} holdout people, "
        f"{sizes.pictures} pictures of {sizes.picture_size} pixels"
    )


def _import(params: Params, folder: Path) -> str:
    from efface.data.benchmarks.importing import import_benchmark

    section = params.benchmark
    layout = importlib.import_module(LAYOUTS[section.name])
    index = import_benchmark(section.name, ROOTS[section.name], section.roots, layout, folder)
    said = []
    for role, root in index["roots"].items():
        size = sum(file["bytes"] for file in root["files"].values())
        said.append(f"{role}: {len(root['files'])} files, {size / 1e6:.0f} MB from {root['source']}")
        if root["commit"] and not root["pinned"]:
            said[-1] += f" (which now is commit {root['commit']}: write that after the @ to pin it)"
    return "; ".join(said)
