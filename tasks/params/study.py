"""The section about studies: many runs of the pipeline side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tasks.params.section import Section

Seed = Annotated[int, Field(ge=0)]


class Study(Section):
    """Methods x fractions x seeds x settings."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    """One world each: its own people, weights and batches."""
    fractions: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] | None
    """Values of `prepare.forget_fraction`; null: the one that section has."""
    methods: Annotated[list[str], Field(min_length=1)] | None
    """Names from `unlearn.methods` and `prune.methods`; null: all of them."""
    grid: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]]
    """Method to setting to values; every combination is tried, the best on validation people is reported."""
    goal: Literal["visual", "full"]
    """What the score asks of the facts by name: kept (visual) or gone with the face (full)."""
    runner: Literal["threads", "dask", "ray"]
    """Where cells run: threads of this machine, or a Dask or Ray cluster that shares its disk."""

    @field_validator("seeds", "fractions", "methods")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"{values} names something twice")
        return values
