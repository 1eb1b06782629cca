"""Stage `benchmark`: draw the avatars benchmark from its seed."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.benchmarks.avatars.generate import Sizes, generate
from tasks.artifacts import writing
from tasks.params import Params


def run(params: Params, root: Path = Path("data")) -> None:
    """Write `<root>/benchmarks/avatars`, whole or not at all."""
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
    folder = root / "benchmarks" / "avatars"
    with writing(folder) as partial:
        generate(partial, seed=section.seed, sizes=sizes)
    typer.echo(
        f"{folder}: {sizes.people} fictitious, {sizes.real} real and {sizes.holdout} holdout people, "
        f"{sizes.pictures} pictures of {sizes.picture_size} pixels"
    )
