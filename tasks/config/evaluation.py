"""Sections about scoring, attacks and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from efface import attacks
from tasks.config.section import UNIQUE, UNLISTED, Count, Level, Name, Rate, Section, Weight


class Evaluate(Section):
    """Scoring of every model."""

    batch_size: Count = 64
    """Questions per batch; halved when memory runs out."""
    max_new_tokens: Count = 16
    """Longest answer, tokens."""
    max_people: Count | None = 20
    """People per set and part (test, validation), drawn by the seed; null: all."""
    prompts: Literal["bare", "published", "published_llava"] = "bare"
    """Prompt for generated answers: the bare question, the benchmark's published prompt in the model's chat
    template, or MLLMU-Bench's whole string for LLaVA-1.5."""
    shots: Annotated[int, Field(ge=0), UNLISTED] = 0
    """Retain people, from those set aside for validation, shown with their answers before each question; more
    than 0 only with published_llava."""
    share_prefix: Annotated[bool, UNLISTED] = True
    """Encode picture and question once for all answers to them, if the family allows it."""
    base_likelihood: Annotated[bool, UNLISTED] = False
    """Score every answer's language by the base model too: one more pass, of text alone. Says something where
    the base model knew language before it met anybody."""

    @model_validator(mode="after")
    def _shots_need_whole_strings(self) -> Evaluate:
        if self.shots and self.prompts != "published_llava":
            raise ValueError(f"shots is {self.shots}: expected 0 with prompts {self.prompts}")
        return self


class LmmsEval(Section):
    """Published benchmarks by lmms-eval, which the extra `lmms` installs."""

    models: Annotated[list[Name], UNIQUE] = []
    """Models to score, such as [base, vanilla, npo]."""
    tasks: Annotated[list[str], Field(min_length=1), UNIQUE] = ["mme"]
    """Names as `lmms-eval tasks` lists them; tasks that generate answers greedily, about pictures or text."""
    folder: Annotated[str | None, UNLISTED] = None
    """Folder with further tasks, YAML files as lmms-eval reads them; null: lmms-eval's own alone."""
    limit: Annotated[Count | None, UNLISTED] = None
    """Questions per task, the first ones; null: all."""


ATTACKS = (
    "reword",
    "in_context",
    "jailbreak",
    "language",
    "cross_modal",
    "typographic",
    "image_shift",
    "probe",
    "soft_prompt",
    "relearn",
    "benign_relearn",
    "quantize",
    "module_reload",
)
"""Names of the attacks in the order in which they run, each with a section of its own under `attack`."""
Texts = dict[str, str]


class Reword(Section):
    """The questions in other words, which training did not use."""

    variants: Count = 2
    """Wordings, one attack each: of the avatars from templates, elsewhere those of the benchmark."""
    lists: dict[str, Texts] = {}
    """Your own instead: name to question, as it stands in the table, to other words."""


class InContext(Section):
    """Solved questions before the question."""

    kinds: Annotated[list[attacks.Context], Field(min_length=1)] = ["examples", "hints"]
    """About people to keep, or about the person's other facts; one attack each."""
    shots: Count = 3
    """How many."""


class Jailbreak(Section):
    """Role play and other prompts meant to get round a refusal."""

    prompts: Texts = {}
    """Your own instead of efface/attacks/jailbreaks.json: name to text with {question} in it."""

    @model_validator(mode="after")
    def _prompts_ask(self) -> Jailbreak:
        for name, text in self.prompts.items():
            if "{question}" not in text:
                raise ValueError(f"prompts.{name} is {text!r}: expected {{question}} where the question goes")
        return self


class Language(Section):
    """The questions in another language."""

    lists: dict[str, Texts] = {}
    """Language to question, as it stands in the table, to its translation; answers are compared with the
    table's, so let the translation say in which language to answer."""


class Typographic(Section):
    """The question drawn into the picture."""

    kinds: Annotated[list[attacks.Typographic], Field(min_length=1)] = ["question", "question_with_name"]
    """One attack each."""


class Probe(Section):
    """Linear probe and logit lens on hidden states."""

    layers: Count = 4
    """Decoder layers, evenly spaced."""
    samples: Count = 2048
    """Questions about the people to keep that the linear probe learns from."""
    penalty: Weight = 0.1
    """Ridge penalty per sample; states have deviation 1."""


class Optimised(Section):
    """Attacks that take optimizer steps."""

    budgets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 30]
    """Optimizer steps at which the model is scored, increasing; 0: before the first."""
    learning_rate: Rate = 1.0e-4
    """Peak learning rate, in (0, 1]."""
    batch_size: Count = 8
    """Samples per step."""

    @model_validator(mode="after")
    def _budgets_increase(self) -> Optimised:
        if self.budgets != sorted(set(self.budgets)) or not any(self.budgets):
            raise ValueError(
                f"budgets is {self.budgets}: expected increasing numbers of steps, the last above 0"
            )
        return self


class SoftPrompt(Optimised):
    """Vectors after the question, optimised on some forgotten people; tested on the others."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the forgotten people to optimise on."""
    budgets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 30, 100]
    """Optimizer steps at which the model is scored, increasing; 0: no vectors."""
    length: Count = 2
    """Number of vectors; many confuse a small model more than they help the attack."""
    learning_rate: Rate = 0.1
    """Of Adam, as a share of the standard deviation of the embeddings, in (0, 1]."""


class Relearn(Optimised):
    """Fine-tuning on facts about some forgotten people; tested on the others."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the forgotten people to relearn from."""
    budgets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 10, 30, 100]
    """Optimizer steps at which the model is scored, increasing; 0: before the first."""


class BenignRelearn(Optimised):
    """Fine-tuning on data that tells nothing about the forgotten people."""

    data: Literal["retain", "skills"] = "retain"
    """Facts about the people to keep, or the benchmark's general skills."""


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

    kinds: Annotated[list[attacks.CrossModal], Field(min_length=1)] = ["name_in_question", "name_in_picture"]
    """Where the name is written, one attack each."""


class ImageShift(Section):
    """Changed pictures."""

    kinds: Annotated[list[attacks.ImageShift], Field(min_length=1)] = ["crop", "noise", "grey", "rotate"]
    """One attack each."""


class Attack(Section):
    """Attempts to bring back what a model was made to forget."""

    models: Annotated[list[Name], UNIQUE] = ["retrained", "mmunlearner", "simnpo"]
    """Models to attack, such as [retrained, npo]; with `retrained` the others are compared to it."""
    run: Annotated[list[Literal[ATTACKS]], Field(min_length=1), UNIQUE] = [  # type: ignore[valid-type]
        *("reword", "cross_modal", "relearn", "quantize", "module_reload")
    ]
    """Attacks on each of them; jailbreak, language and typographic need a model that knows more words than
    the sandbox's."""
    reword: Reword = Reword()
    in_context: InContext = InContext()
    jailbreak: Jailbreak = Jailbreak()
    language: Language = Language()
    cross_modal: CrossModal = CrossModal()
    typographic: Typographic = Typographic()
    image_shift: ImageShift = ImageShift()
    probe: Probe = Probe()
    soft_prompt: SoftPrompt = SoftPrompt()
    relearn: Relearn = Relearn()
    benign_relearn: BenignRelearn = BenignRelearn()
    quantize: Quantize = Quantize()
    module_reload: ModuleReload = ModuleReload()


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
