"""The section about studies: many runs of the pipeline, compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.section import UNIQUE, UNLISTED, Count, Name, Section
from tasks.config.unlearning import validated_methods

Values = Annotated[list[Any], Field(min_length=1)]


class Study(Section):
    """Methods on disjoint forget sets of several seeds, with settings that another seed chose."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), UNIQUE] = [0, 1, 2]
    """Seeds to report; each has its own people, weights and batches."""
    folds: Annotated[int, Field(ge=2)] | None = 8
    """Disjoint forget sets of each seed, which together hold all people; null: one, as `split` says."""
    folds_per_seed: Annotated[Annotated[int, Field(ge=1)] | None, UNLISTED] = None
    """How many of the folds to run on each seed, the first ones; null: all. More seeds with fewer folds each
    detect smaller differences than the same number of runs on fewer seeds."""
    tuning_seed: Annotated[int, Field(ge=0), UNLISTED] = 100
    """The seed that chooses among the settings of `grid`; it is in no reported number."""
    tuning_folds: Annotated[Count, UNLISTED] = 2
    """Folds of the tuning seed that the settings are tried on."""
    methods: dict[Name, Any] = {}
    """Methods that a study runs beside those of `unlearn.methods` and `prune.methods`; same form as
    `unlearn.methods`."""
    grid: dict[str, dict[str, Values]] = {}
    """Method to setting to values; every combination is tried, as many for one method as for another. A
    control takes those of its method."""
    attacks: bool = False
    """Run the attacks of `attack.run` too, on the first fold of each seed, where retrained is."""
    goal: Literal["visual", "full"] = "visual"
    """How the score treats facts by name: retained (visual), or forgotten with the face (full)."""

    @field_validator("methods")
    @classmethod
    def _methods_have_their_settings(cls, methods: dict[str, Any]) -> dict[str, Any]:
        return validated_methods(methods)

    @property
    def fold_numbers(self) -> range:
        """The folds to run on each seed."""
        return range(self.folds_per_seed or self.folds or 1)

    @model_validator(mode="after")
    def _the_folds_exist(self) -> Study:
        if (self.folds_per_seed or 1) > (self.folds or 1):
            raise ValueError(
                f"folds_per_seed is {self.folds_per_seed}: expected at most {self.folds or 1}, which folds is"
            )
        return self

    @model_validator(mode="after")
    def _the_tuning_seed_is_not_reported(self) -> Study:
        if self.tuning_seed in self.seeds:
            raise ValueError(
                f"tuning_seed is {self.tuning_seed}, which is also one of seeds {self.seeds}: expected a "
                "seed of its own"
            )
        return self
