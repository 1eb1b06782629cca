"""The section about studies: many runs of the pipeline, compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.section import UNLISTED, Count, Section, require_unique
from tasks.config.unlearning import validated_methods

Values = Annotated[list[Any], Field(min_length=1)]


class Study(Section):
    """Methods x fractions x seeds x settings."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    """Each seed has its own people, weights and batches."""
    fractions: Annotated[
        Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] | None, UNLISTED
    ] = None
    """Values of `split.forget_fraction`; null: that key's own."""
    methods: dict[str, Any] = {}
    """Methods that a study runs beside those of `unlearn.methods` and `prune.methods`; same form as
    `unlearn.methods`."""
    grid: dict[str, dict[str, Values]] = {}
    """Method to setting to values; every combination is tried, the best on validation people is reported."""
    tuning_seeds: Annotated[Count | None, UNLISTED] = 1
    """Settings are tried on that many seeds, the first ones; the others run the best only. null: on all."""
    attacks: bool = True
    """Run the attacks of `attack.run` on every selected model, and on vanilla and retrained."""
    goal: Literal["visual", "full"] = "visual"
    """How the score treats facts by name: retained (visual), or forgotten with the face (full)."""

    @field_validator("methods")
    @classmethod
    def _methods_have_their_settings(cls, methods: dict[str, Any]) -> dict[str, Any]:
        return validated_methods(methods)

    @model_validator(mode="after")
    def _values_are_unique(self) -> Study:
        require_unique("seeds", self.seeds)
        require_unique("fractions", self.fractions or [])
        return self
