"""Stage `benchmark`: draw the avatars from their seed, or bring a benchmark into the project."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer

from efface.data.benchmarks import READERS, ROOTS
from tasks.config import Params
from tasks.runtime.artifacts import writing
from tasks.runtime.purged import purge_filter


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `<root>/benchmarks/<name>`, atomically."""
    name = params.benchmark.name
    folder = root / "benchmarks" / name
    with writing(folder) as partial:
        summary = _import(params, partial) if name in ROOTS else _generate(params, partial, root)
    typer.echo(f"benchmark: {folder} holds {summary}")


def _generate(params: Params, folder: Path, root: Path) -> str:
    from efface.data.benchmarks.avatars.generate import Sizes, generate

    sizes = Sizes(**params.avatars.model_dump(exclude={"seed"}))
    generate(folder, seed=params.avatars.seed, sizes=sizes, left_out=purge_filter(root))
    return (
        f"{sizes.people} fictitious, {sizes.real} real and {sizes.holdout} holdout people, "
        f"{sizes.pictures} pictures of {sizes.picture_size} pixels"
    )


def _import(params: Params, folder: Path) -> str:
    from efface.data.benchmarks.roots import import_benchmark

    section = params.benchmark
    importer = importlib.import_module(READERS[section.name])
    sources = {role: section.roots[role] for role in ROOTS[section.name]}
    index = import_benchmark(section.name, sources, importer.PATTERNS, importer.files_to_import, folder)
    messages = []
    for role, root in index["roots"].items():
        size = sum(file["bytes"] for file in root["files"].values())
        messages.append(f"{role}: {len(root['files'])} files, {size / 1e6:.0f} MB from {root['source']}")
        if root["commit"] and not root["pinned"]:
            messages[-1] += f" (currently commit {root['commit']}; write it after the @ to pin it)"
    return "; ".join(messages)
