"""The sections about questions to the models and about the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import Count, Level, Rate, Section


class Evaluate(Section):
    """Questions to every model."""

    batch_size: Count
    """Questions answered side by side; halved when memory runs out."""
    max_new_tokens: Count
    """Longest answer, tokens."""
    max_people: Count | None
    """People asked about per set, and as many again for choosing settings, drawn by the seed; null: all."""
    share_prefix: bool
    """Read picture and question once for all answers scored after them, where the family allows it."""
    compile: bool
    """Run models through torch.compile: slower to begin with, faster after; may change the last digits."""
    prompts: Literal["bare", "published", "published_llava"]
    """Words of the questions the model answers freely: the bare question, those of the benchmark's published
    code in the model's chat template, or MLLMU-Bench's whole string for LLaVA-1.5."""
    shots: Annotated[int, Field(ge=0)]
    """Retain people, of those set aside for validation, whose solved questions stand before each question;
    more than 0 only with published_llava."""
    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]
    """Name in the report: folder under data/models."""

    @model_validator(mode="after")
    def _shots_are_published_as_whole_strings(self) -> Evaluate:
        if self.shots and self.prompts != "published_llava":
            raise ValueError(
                f"shots is {self.shots}: expected 0 with prompts {self.prompts}; only published_llava "
                "has shots"
            )
        return self


ATTACKS = ("relearn", "quantize", "module_reload", "cross_modal", "image_shift")
"""Names of attacks, each with a section of its own under `attack`."""


class Relearn(Section):
    """Fine-tuning on facts about some forgotten people; tested on the others."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Of the forgotten people to relearn from."""
    budgets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Optimizer steps at which the model is scored, increasing; 0: before any."""
    learning_rate: Rate
    batch_size: Count


class Quantize(Section):
    """Rounding the weights of linear layers."""

    bits: Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(min_length=1)]
    """Bits per weight, one attack each, 2 to 8."""


class ModuleReload(Section):
    """Putting parts of the vanilla model back, one at a time."""

    parts: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    """One attack each."""


class CrossModal(Section):
    """Giving the name away beside the picture."""

    kinds: Annotated[list[Literal["name_in_question", "name_in_picture"]], Field(min_length=1)]
    """Where the name is written, one attack each."""


class ImageShift(Section):
    """Changed pictures."""

    kinds: Annotated[list[Literal["crop", "noise", "grey", "rotate"]], Field(min_length=1)]
    """One attack each."""


class Attack(Section):
    """Ways to bring back what was forgotten: a stage per model, none by default."""

    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]
    """Models to attack, as in `evaluate.models`: name in the report: folder under data/models. With
    `retrained` among them, the others are held against it."""
    run: Annotated[list[Literal[ATTACKS]], Field(min_length=1)]  # type: ignore[valid-type]
    """The attacks that each of them gets."""
    relearn: Relearn
    quantize: Quantize
    module_reload: ModuleReload
    cross_modal: CrossModal
    image_shift: ImageShift

    @model_validator(mode="after")
    def _each_attack_once(self) -> Attack:
        if len(set(self.run)) < len(self.run):
            raise ValueError(f"run is [{', '.join(self.run)}]: expected each attack once")
        return self


class Targets(Section):
    """What a run must show before its comparison means anything: exact match, in [0, 1]."""

    vanilla_forget: Level
    """Vanilla on the forget people, pictures it saw: at least."""
    vanilla_unseen: Level
    """Vanilla on the forget people, pictures it never saw: at least."""
    vanilla_text: Level
    """Vanilla on the forget people by name: at least."""
    retrained_forget: Level
    """Retrained on the forget people, either modality: at most."""
    skills_kept: Level
    """Vanilla's skills as a share of the base model's: at least."""


class Report(Section):
    """What the report shows."""

    targets: Targets

    gallery_people: Annotated[int, Field(ge=0)]
    """Faces shown with every model's answers."""
