"""params.yaml as frozen classes, one per section, checked before anything runs.

Every key is spelled out in the file: the classes hold no defaults. A mistake becomes one line that names the
key as it stands in the file, the value found, and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

import efface
from tasks.params_errors import ParamsError, explain
from tasks.params_file import PROFILES, merged, profiles_of, read

UNLEARNING_METHODS = tuple(
    sorted(file.stem for file in Path(efface.__file__).parent.glob("unlearning/methods/[a-z]*.py"))
)
"""A method is a file; finding the names this way loads no torch."""
PRUNING_METHODS = ("manu", "random_pruning")
YARDSTICKS = ("base", "vanilla", "retrained")

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Avatars(_Section):
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


class Prepare(_Section):
    """One benchmark as one table of samples, split into who is forgotten and who is kept."""

    benchmark: Literal["avatars"]
    """Folder under data/benchmarks."""
    forget_fraction: Literal[0.05, 0.1, 0.15]
    """Share of the fictitious people to forget; the benchmark's files know these three."""
    validation_fraction: Share
    """Share of the forget and of the retain people whose evaluation rows are for tuning, in [0, 1)."""


class Base(_Section):
    """The small vision-language model and its training from nothing."""

    image_size: Annotated[int, Field(ge=16, le=512)]
    """Side of the picture the vision tower sees, pixels; a multiple of `patch_size`."""
    patch_size: Annotated[int, Field(ge=2, le=64)]
    """Side of one patch, pixels."""
    width: Annotated[int, Field(ge=8)]
    """Hidden units of both towers; a multiple of twice `heads`."""
    mlp_width: Annotated[int, Field(ge=8)]
    """Neurons of each MLP."""
    vision_layers: Annotated[int, Field(ge=2)]
    """Blocks of the vision tower; the last but one is read, so at least 2."""
    language_layers: Count
    """Blocks of the decoder."""
    heads: Count
    """Attention heads of both towers."""
    vision_steps: Count
    """Optimiser steps of attribute pre-training."""
    vision_learning_rate: Rate
    """Peak learning rate of attribute pre-training, in (0, 1]."""
    steps: Count
    """Optimiser steps of vision-language training."""
    learning_rate: Rate
    """Peak learning rate of vision-language training, in (0, 1]."""
    batch_size: Count
    """Samples per optimiser step."""

    @model_validator(mode="after")
    def _fits(self) -> Base:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}: expected a multiple of patch_size ({self.patch_size})"
            )
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}: expected a multiple of twice heads ({2 * self.heads})")
        return self


class Finetuning(_Section):
    """Fine-tuning of the base model: on everybody (vanilla) or on the retain people only (retrained)."""

    steps: Count
    """Optimiser steps."""
    learning_rate: Rate
    """Peak learning rate of the one-cycle schedule, in (0, 1]."""
    batch_size: Count
    """Samples per optimiser step."""
    text_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the text renderings trained on, in (0, 1]; words are learnt sooner than pictures."""
    replay_share: Level
    """Skills and `real` people replayed beside the facts, as a share of them, in [0, 1]."""
    checkpoint_every: Count
    """Optimiser steps between checkpoints."""


class Saliency(_Section):
    """Which weights matter more for the forget set than for what must stay."""

    variant: Literal["paper"]
    """How the mask is built."""
    groups: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    """Parts of the model that may change at all."""
    threshold: Annotated[float, Field(gt=0)]
    """A weight may change when forget saliency / preserve saliency is at least this."""
    fisher_samples: Count | None
    """Samples drawn from each set; null: all."""
    batch_size: Count
    """Samples per forward pass; no influence on the result."""


class Importance(_Section):
    """How much each MLP neuron works for the forget set and for the retain set."""

    variant: Literal["paper"]
    """How statistics become a score."""
    active_above: Weight
    """A neuron counts as active when |activation| exceeds this."""
    samples: Count | None
    """Samples drawn from each set; null: all."""
    vision_text_reference: Literal["blank_image"]
    """What the vision tower sees for a text-only question."""
    batch_size: Count
    """Samples per forward pass; no influence on the result."""


def _mask_flag(value: object) -> object:
    if value not in ("saliency", "none"):
        raise ValueError("expected saliency or none")
    return value == "saliency"


class UnlearningMethod(_Section):
    """One way of unlearning by training."""

    mask: Annotated[
        bool,
        BeforeValidator(_mask_flag),
        Field(json_schema_extra={"type": "string", "enum": ["saliency", "none"]}),
    ]
    """saliency: only weights in the saliency mask may change (True in Python); none: all may."""
    epochs: Count
    """Passes over the forget set."""
    learning_rate: Rate
    """Peak learning rate, in (0, 1]."""
    forget_weight: Weight
    """Factor of the forget term of the loss, at least 0."""
    retain_weight: Weight
    """Factor of the retain term of the loss, at least 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None
    """Gradients are clipped to this norm; null: never."""
    warmup_fraction: Share
    """Share of the steps with rising learning rate, in [0, 1)."""
    weight_decay: Share
    """AdamW's decay, in [0, 1)."""
    retain_batches_per_forget_batch: Annotated[int, Field(ge=0)]
    """Retain batches beside each forget batch; 0: the retain set is not used."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """Temperature of npo; other methods have none."""


class Stop(_Section):
    """When unlearning ends before its last step."""

    forget_loss: Annotated[float, Field(gt=0)] | None
    """Stop once the forget loss (nats per token) reaches this; null: off."""
    retain_rise: Annotated[float, Field(gt=0)] | None
    """Stop once the retain loss has risen by this many nats per token; null: off."""


class Unlearn(_Section):
    """Unlearning by training, one model per method."""

    batch_size: Count
    """Samples per optimiser step, from each set."""
    checkpoint_every: Count
    """Optimiser steps between checkpoints."""
    methods: dict[Literal[UNLEARNING_METHODS], UnlearningMethod]  # type: ignore[valid-type]
    """The methods to run."""
    stop: Stop

    @model_validator(mode="after")
    def _beta_belongs_to_npo(self) -> Unlearn:
        for name, method in self.methods.items():
            if name == "npo" and method.beta is None:
                raise ValueError("methods.npo.beta is missing: expected a number above 0")
            if name != "npo" and method.beta is not None:
                raise ValueError(f"methods.{name}.beta is {method.beta}: only npo has one; remove it")
        return self


class PruningMethod(_Section):
    """One way of choosing neurons to switch off."""

    selection: Literal["importance", "random"]
    """What ranks the neurons."""
    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of neurons to switch off, in (0, 1)."""
    scope: Literal["tower", "global", "layer"]
    """Within what the share is taken."""


class Prune(_Section):
    """Unlearning by switching neurons off, one model per method."""

    methods: dict[Literal[PRUNING_METHODS], PruningMethod]  # type: ignore[valid-type]
    """The methods to run."""


class Evaluate(_Section):
    """Questions to every model."""

    batch_size: Count
    """Questions answered side by side."""
    max_new_tokens: Count
    """Longest answer, tokens."""
    max_people: Count | None
    """People asked about per set, drawn by the seed; null: everybody."""
    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]
    """Name in the report: folder under data/models."""


class Targets(_Section):
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


class Report(_Section):
    """What the report shows."""

    targets: Targets

    gallery_people: Annotated[int, Field(ge=0)]
    """Faces shown with every model's answers."""


class Params(_Section):
    """All of params.yaml with the chosen profile applied."""

    seed: Annotated[int, Field(ge=0)]
    """Seed of training and drawing."""
    avatars: Avatars
    prepare: Prepare
    base: Base
    vanilla: Finetuning
    retrained: Finetuning
    saliency: Saliency
    importance: Importance
    unlearn: Unlearn
    prune: Prune
    evaluate: Evaluate
    report: Report

    @model_validator(mode="after")
    def _every_model_is_evaluated(self) -> Params:
        folders = {name: name for name in YARDSTICKS}
        folders |= {name: f"unlearned/{name}" for name in (*self.unlearn.methods, *self.prune.methods)}
        for name, folder in folders.items():
            if self.evaluate.models.get(name) != folder:
                raise ValueError(
                    f"evaluate.models must hold every model; add this entry to it: {name}: {folder}"
                )
        for name, folder in self.evaluate.models.items():
            if folder not in folders.values():
                raise ValueError(
                    f"evaluate.models.{name} is {folder!r}: no stage makes that model; "
                    f"expected one of: {', '.join(folders.values())}"
                )
        return self


SECTIONS = tuple(name for name in Params.model_fields if name != "seed")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read the file, check all of it (every profile), and return it with the chosen profile applied.

    Raises:
        ParamsError: one line per mistake, naming key, value and what is allowed.
    """
    data = read(Path(path), SECTIONS)
    profiles = profiles_of(data, path, SECTIONS)
    sections = {key: value for key, value in data.items() if key != "profiles"}
    avatars = sections.get("avatars")
    chosen = avatars.get("profile") if isinstance(avatars, dict) else None
    mistakes: list[str] = []
    loaded: Params | None = None
    for name in sorted(profiles, key=lambda name: name != chosen):  # the chosen one's mistakes come first
        try:
            params = Params.model_validate(merged(sections, profiles[name]))
        except ValidationError as error:
            mistakes += explain(error, Params.model_json_schema(), name, profiles[name])
        else:
            loaded = params if name == chosen else loaded
    if mistakes or loaded is None:
        raise ParamsError(path, mistakes)
    return loaded
