"""The sections about people and samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from efface.data.benchmarks import READERS, ROOTS
from tasks.config.file import PROFILES
from tasks.config.section import Count, Section, Share


class Avatars(Section):
    """The embedded benchmark: who exists and how many pictures of them."""

    profile: Literal[PROFILES]  # type: ignore[valid-type]
    """Which entry of `profiles` replaces values of the sections; it may choose another benchmark too."""
    seed: Annotated[int, Field(ge=0)]
    """Draws people, facts and pictures."""
    people: Annotated[int, Field(ge=7, le=2000)]
    """Fictitious people; 7 is the least of which 15 % and 5 % both leave somebody on each side."""
    real: Annotated[int, Field(ge=1, le=2000)]
    """People already known to the base model."""
    holdout: Annotated[int, Field(ge=1, le=2000)]
    """People no model ever sees."""
    train_views: Annotated[int, Field(ge=1, le=20)]
    """Pictures of each person to train on."""
    test_views: Annotated[int, Field(ge=1, le=20)]
    """Further pictures of each person, for evaluation only."""
    stranger_pictures: Count
    """Random faces with attribute labels, for pre-training the vision tower."""
    skill_samples: Annotated[int, Field(ge=5)]
    """Questions about strangers to train on; a fifth as many again to test on."""
    picture_size: Annotated[int, Field(ge=32, le=512)]
    """Side of a portrait, pixels."""


class Benchmark(Section):
    """Which people there are: drawn here (`avatars`) or imported."""

    name: Literal[tuple(READERS)]  # type: ignore[valid-type]
    """Folder under data/benchmarks."""
    roots: dict[str, str]
    """What an imported benchmark is read from, by role (mllmu: eval and train): a folder or table;
    hf://datasets/OWNER/NAME@COMMIT, a dataset of the Hub; hf://OWNER/NAME@COMMIT, a model repository."""

    @model_validator(mode="after")
    def _has_its_roots(self) -> Benchmark:
        wanted = set(ROOTS.get(self.name, ()))
        if set(self.roots) != wanted:
            expected = ", ".join(sorted(wanted)) or "none, it is made here"
            given = ", ".join(sorted(self.roots)) or "none"
            raise ValueError(f"roots of {self.name}: expected {expected}; given {given}")
        return self


class Prepare(Section):
    """One benchmark as one table of samples, split into who is forgotten and who is kept."""

    forget_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the people to forget, in (0, 1); avatars and mllmu know 0.05, 0.1 and 0.15."""
    forget_people: Annotated[list[str], Field(min_length=1)] | None
    """Ids of the people to forget, as in splits.json (fictitious/042), in place of the share; everybody else
    is kept."""
    forgotten_people: Annotated[list[str], Field(min_length=1)] | None
    """Ids of others who were forgotten before: neither forgotten again nor kept, only asked about."""
    validation_fraction: Share
    """Share of the forget and of the retain people whose evaluation rows are for tuning, in [0, 1)."""
    on_bad_row: Literal["stop", "skip"]
    """A row that cannot be used stops the import, or is left out, counted and listed."""

    @model_validator(mode="after")
    def _somebody_is_to_be_forgotten_now(self) -> Prepare:
        if self.forgotten_people is not None and self.forget_people is None:
            raise ValueError(
                "forgotten_people is given without forget_people: expected null, or both; name those who are "
                "to be forgotten now"
            )
        return self
