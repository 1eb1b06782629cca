"""The sections about people and samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.params.file import PROFILES
from tasks.params.section import Count, Section, Share


class Avatars(Section):
    """The embedded benchmark: who exists and how many pictures of them."""

    profile: Literal[PROFILES]  # type: ignore[valid-type]
    """Which entry of `profiles` replaces values of the sections."""
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


class Prepare(Section):
    """One benchmark as one table of samples, split into who is forgotten and who is kept."""

    benchmark: Literal["avatars"]
    """Folder under data/benchmarks."""
    forget_fraction: Literal[0.05, 0.1, 0.15]
    """Share of the fictitious people to forget; the benchmark's files know these three."""
    validation_fraction: Share
    """Share of the forget and of the retain people whose evaluation rows are for tuning, in [0, 1)."""
