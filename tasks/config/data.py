"""Sections about people and samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from efface.data.benchmarks import READERS, ROOTS
from tasks.config.section import UNLISTED, Count, Section, Share


class Avatars(Section):
    """The embedded benchmark: how many people, and how many pictures of each."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Draws people, facts and pictures."""
    people: Annotated[int, Field(ge=7, le=2000)] = 60
    """Fictitious people; with 7 or more, both 5 % and 15 % leave at least one person on each side."""
    real: Annotated[int, Field(ge=1, le=2000), UNLISTED] = 12
    """People that the base model already knows."""
    holdout: Annotated[int, Field(ge=1, le=2000), UNLISTED] = 12
    """People that no model is trained on."""
    train_views: Annotated[int, Field(ge=1, le=20), UNLISTED] = 6
    """Training pictures per person."""
    test_views: Annotated[int, Field(ge=1, le=20), UNLISTED] = 3
    """Further pictures per person, for evaluation only."""
    stranger_pictures: Annotated[Count, UNLISTED] = 2500
    """Random faces with attribute labels, for pre-training the vision tower."""
    skill_samples: Annotated[int, Field(ge=5), UNLISTED] = 2500
    """Training questions about strangers; a fifth as many test questions are added."""
    picture_size: Annotated[int, Field(ge=32, le=512), UNLISTED] = 96
    """Side of a portrait, pixels."""
    language: Annotated[bool, UNLISTED] = False
    """Add text on common facts and plain English, half of it for training and half for tests; for a decoder
    that knows language (`base.decoder`)."""


class Benchmark(Section):
    """The benchmark: the embedded one (`avatars`) or an imported one."""

    name: Literal[tuple(READERS)] = "avatars"  # type: ignore[valid-type]
    """Folder under data/benchmarks."""
    roots: dict[str, str] = {}
    """Sources of an imported benchmark, by role (mllmu: eval and train): a folder or table;
    hf://datasets/OWNER/NAME@COMMIT, a dataset of the Hub; hf://OWNER/NAME@COMMIT, a model repository."""

    @model_validator(mode="after")
    def _has_its_roots(self) -> Benchmark:
        roles = ROOTS.get(self.name, ())
        if set(self.roots) != set(roles):
            raise ValueError(
                f"roots of {self.name} is {self.roots}: expected the keys {', '.join(roles) or '(none)'}"
            )
        return self


class Prepare(Section):
    """One benchmark as one table of samples."""

    on_bad_row: Literal["stop", "skip"] = "stop"
    """An unusable row stops the import, or is left out, counted and listed."""
    similar_people: Annotated[Literal["stop", "distinct"], UNLISTED] = "stop"
    """What to do about people whose ids or names differ only by accents, case, spaces or punctuation: stop,
    or treat them as distinct."""


class Split(Section):
    """Who is forgotten, and who of the people is set aside for tuning."""

    forget_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the people to forget, in (0, 1); avatars, mllmu and umu have 0.05, 0.1 and 0.15, clear
    and fiubench 0.01, 0.05 and 0.1."""
    forget_people: Annotated[list[str], Field(min_length=1)] | None = None
    """Ids of the people to forget, as in splits.json (fictitious/042), instead of a share; all others are
    retained."""
    forgotten_people: Annotated[Annotated[list[str], Field(min_length=1)] | None, UNLISTED] = None
    """Ids of people forgotten by earlier runs: neither forgotten again nor retained, only evaluated."""
    forget_attributes: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]] | None, UNLISTED] = None
    """Person of `forget_people` or `forgotten_people`, by id, to the attributes (column attribute, such as
    birthplace) to forget; the person's other facts are retained. null, or a person left out: all facts."""
    validation_fraction: Share = 0.15
    """Share of the forget and of the retain people whose evaluation rows are for tuning, in [0, 1)."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Divide the people into that many disjoint sets, drawn by the seed, and forget one of them instead."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The set to forget, counted from 0, if there are folds."""

    @model_validator(mode="after")
    def _the_fold_is_one_of_them(self) -> Split:
        if self.folds is None and self.fold:
            raise ValueError(f"fold is {self.fold} without folds: expected 0, or a number of folds")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold is {self.fold}: expected one of 0 to {self.folds - 1}, as folds is {self.folds}"
            )
        if self.folds is not None and self.forget_people is not None:
            raise ValueError(
                f"folds is {self.folds} and forget_people is {self.forget_people}: expected one to be null"
            )
        return self

    @model_validator(mode="after")
    def _these_need_forget_people(self) -> Split:
        for key in ("forgotten_people", "forget_attributes"):
            if (value := getattr(self, key)) is not None and self.forget_people is None:
                raise ValueError(f"{key} is {value} without forget_people: expected null, or both")
        return self
