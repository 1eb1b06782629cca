"""Sections about scoring, attacks and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import UNLISTED, Count, Level, Name, Rate, Section, require_unique


class Evaluate(Section):
    """Scoring of every model."""

    batch_size: Count = 64
    """Questions per batch; halved when memory runs out."""
    max_new_tokens: Count = 16
    """Longest answer, tokens."""
    max_people: Count | None = 20
    """People per set and part (test, validation), drawn by the seed; null: all."""
    prompts: Literal["bare", "published", "published_llava"] = "bare"
    """Prompt of questions with a free answer: the bare question, the benchmark's published prompt in the
    model's chat template, or MLLMU-Bench's whole string for LLaVA-1.5."""
    shots: Annotated[int, Field(ge=0), UNLISTED] = 0
    """Retain people, from those set aside for validation, shown with their answers before each question; more
    than 0 only with published_llava."""
    share_prefix: Annotated[bool, UNLISTED] = True
    """Encode picture and question once for all answers scored after them, where the family allows it."""
    compile: Annotated[bool, UNLISTED] = False
    """Run models through torch.compile: slower at first, faster later; may change the last digits."""

    @model_validator(mode="after")
    def _shots_need_whole_strings(self) -> Evaluate:
        if self.shots and self.prompts != "published_llava":
            raise ValueError(f"shots is {self.shots}: expected 0 with prompts {self.prompts}")
        return self


ATTACKS = ("relearn", "quantize", "module_reload", "cross_modal", "image_shift")
"""Names of the attacks, each with a section of its own under `attack`."""


class Relearn(Section):
    """Fine-tuning on facts about some forgotten people; tested on the others."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the forgotten people to relearn from."""
    budgets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 10, 30, 100]
    """Optimizer steps at which the model is scored, increasing; 0: before the first."""
    learning_rate: Rate = 1.0e-4
    """Peak learning rate, in (0, 1]."""
    batch_size: Count = 8
    """Samples per step."""


class Quantize(Section):
    """Rounding the weights of linear layers."""

    bits: Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(min_length=1)] = [8, 4]
    """Bits per weight, one attack each, 2 to 8."""


class ModuleReload(Section):
    """Putting parts of the vanilla model back, one at a time."""

    parts: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)] = [
        "projector",
        "vision",
    ]
    """One attack each."""


class CrossModal(Section):
    """Giving the name away beside the picture."""

    kinds: Annotated[list[Literal["name_in_question", "name_in_picture"]], Field(min_length=1)] = [
        "name_in_question",
        "name_in_picture",
    ]
    """Where the name is written, one attack each."""


class ImageShift(Section):
    """Changed pictures."""

    kinds: Annotated[list[Literal["crop", "noise", "grey", "rotate"]], Field(min_length=1)] = [
        "crop",
        "noise",
        "grey",
        "rotate",
    ]
    """One attack each."""


class Attack(Section):
    """Attempts to bring back what a model was made to forget."""

    models: list[Name] = []
    """Models to attack, such as [retrained, npo]; with `retrained` the others are compared to it."""
    run: Annotated[list[Literal[ATTACKS]], Field(min_length=1)] = list(ATTACKS)  # type: ignore[valid-type]
    """Attacks on each of them."""
    relearn: Relearn = Relearn()
    quantize: Quantize = Quantize()
    module_reload: ModuleReload = ModuleReload()
    cross_modal: CrossModal = CrossModal()
    image_shift: ImageShift = ImageShift()

    @model_validator(mode="after")
    def _lists_are_unique(self) -> Attack:
        require_unique("models", self.models)
        require_unique("run", self.run)
        return self


class Targets(Section):
    """Exact match, in [0, 1], that a run must show before its comparison means anything."""

    vanilla_forget: Level = 0.9
    """Vanilla on the forget people, pictures it was trained on: at least."""
    vanilla_unseen: Level = 0.65
    """Vanilla on the forget people, pictures it was not trained on: at least."""
    vanilla_text: Level = 0.95
    """Vanilla on the forget people by name: at least."""
    retrained_forget: Level = 0.15
    """Retrained on the forget people, either modality: at most."""
    skills_kept: Level = 0.9
    """Vanilla's skills as a share of the base model's: at least."""


class Report(Section):
    """What the report shows."""

    gallery_people: Annotated[int, Field(ge=0)] = 10
    """Faces shown with every model's answers."""
    targets: Annotated[Targets, UNLISTED] = Targets()
