"""The section about studies: many runs of the pipeline side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.section import Count, Section
from tasks.config.unlearning import UNLEARNING_METHODS, UnlearningMethod, check_methods

Seed = Annotated[int, Field(ge=0)]


class Study(Section):
    """Methods x fractions x seeds x settings."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    """One world each: its own people, weights and batches."""
    fractions: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] | None
    """Values of `prepare.forget_fraction`; null: the one that section has."""
    methods: Annotated[list[str], Field(min_length=1)] | None
    """Names from `unlearn.methods`, `prune.methods` and `extra`; null: all of them."""
    extra: dict[Literal[UNLEARNING_METHODS], UnlearningMethod]  # type: ignore[valid-type]
    """Methods that only studies run, written as under `unlearn.methods`."""
    grid: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]]
    """Method to setting to values; every combination is tried, the best on validation people is reported."""
    tuning_seeds: Count | None
    """Settings are tried on that many seeds, the first; the others run the chosen ones only. null: on all."""
    attacks: bool
    """Whether `attack.run` is done to every chosen model, and to vanilla and retrained."""
    goal: Literal["visual", "full"]
    """What the score asks of the facts by name: kept (visual) or gone with the face (full)."""
    runner: Literal["threads", "dask", "ray"]
    """Where cells run: threads of this machine, or a Dask or Ray cluster that shares its disk."""

    @model_validator(mode="after")
    def _each_extra_method_has_its_settings(self) -> Study:
        check_methods(self.extra, "extra")
        return self

    @field_validator("seeds", "fractions", "methods")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"{values} names something twice")
        return values
