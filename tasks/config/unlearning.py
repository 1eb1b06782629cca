"""Sections about unlearning by training."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import Field, create_model, field_validator, model_validator

from tasks.config.section import UNIQUE, UNLISTED, Count, Name, Section, Share

if TYPE_CHECKING:
    from efface.models.lora import Lora as Shape


class UnlearningMethod(Section):
    """One entry of `unlearn.methods`: these four keys, and the settings of the method's class."""

    method: str
    """File in efface/unlearning/methods; several entries may share one."""
    start: Annotated[str, Field(pattern=r"^(vanilla|unlearned/[a-z][a-z0-9_]*)$")]
    """The model under data/models to start from: vanilla, a pruned model, or that of a method above."""
    mask: Literal["saliency", "random", "magnitude", "retain_statistic", "none"]
    """File in data/masks with the weights that the forget term may change; none: all. For a method that reads
    the retain statistic, `retain_statistic` is the file of `python -m tasks retain-statistic`; none: the run
    measures it."""
    retain_text: Annotated[bool, UNLISTED] = False
    """Retain the forget people's facts as text, too. The method must read the retain set itself, not a saved
    statistic of it; not together with `text` in `unlearn.forget`."""
    settings_class: ClassVar[type[Any]]
    statistic: ClassVar[bool]
    retains: ClassVar[bool]

    @property
    def settings(self) -> Any:
        """The method's settings, such as an `NPOSettings`."""
        return self.settings_class(**self.model_dump(exclude={"method", "start", "mask", "retain_text"}))

    @model_validator(mode="after")
    def _settings_are_in_range(self) -> UnlearningMethod:
        _ = self.settings  # its class checks the ranges
        return self

    @model_validator(mode="after")
    def _the_mask_is_of_the_methods_kind(self) -> UnlearningMethod:
        if self.mask != "none" and (self.mask == "retain_statistic") != self.statistic:
            allowed = "retain_statistic or none" if self.statistic else "a mask of weights, or none"
            raise ValueError(f"mask is {self.mask!r}: expected {allowed}")
        return self

    @model_validator(mode="after")
    def _retained_text_is_read(self) -> UnlearningMethod:
        reads_set = self.retains and (self.statistic or getattr(self.settings, "uses_retain_set", False))
        if self.retain_text and (self.mask == "retain_statistic" or not reads_set):
            instead = "a saved statistic" if reads_set else "no retain set"
            raise ValueError(f"retain_text is true and {self.method} reads {instead} here: expected false")
        return self


def method_names() -> list[str]:
    """Names of all unlearning methods."""
    from efface.unlearning import METHODS

    return list(METHODS)


_LISTED = ("learning_rate", "beta")
"""Settings of a method that params.yaml lists."""


@cache
def method_class(name: str) -> type[UnlearningMethod]:
    """The class of a method's entry in `unlearn.methods`."""
    from efface.unlearning import METHODS

    settings = METHODS[name].settings
    types = get_type_hints(settings)
    fields: dict[str, Any] = {
        field.name: (
            types[field.name] if field.name in _LISTED else Annotated[types[field.name], UNLISTED],
            field.default,
        )
        for field in dataclasses.fields(settings)
    }
    section = create_model(name, __base__=UnlearningMethod, **fields)
    method = METHODS[name]
    section.settings_class, section.statistic = settings, method.statistic
    section.retains = "retain" in method.reads
    return section


def validated_methods(methods: dict[str, Any]) -> dict[str, Any]:
    """Method names to entries of their classes.

    Raises:
        pydantic.ValidationError: if a name is unknown or a setting is not allowed.
    """
    if not methods:
        return {}
    fields: dict[str, Any] = {}
    named = {}
    for name, entry in methods.items():
        method = entry.get("method", name) if isinstance(entry, dict) else name
        if method in method_names():
            fields[name] = (method_class(method), ...)
        elif method != name:
            raise ValueError(f"{name}.method is {method!r}: expected one of: {', '.join(method_names())}")
        named[name] = {"method": method} | entry if isinstance(entry, dict) else entry
    entries = create_model("Methods", __base__=Section, **fields).model_validate(named)
    return {name: getattr(entries, name) for name in methods}


class Lora(Section):
    """Low-rank factors that train instead of the weights."""

    rank: Count = 8
    """Rank of each update."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Updates are scaled by alpha / rank."""
    dropout: Share = 0.05
    """Share of the factors' inputs dropped in training, in [0, 1)."""
    components: Annotated[list[Literal["language", "projector", "vision"]], Field(min_length=1)] = [
        "language"
    ]
    """Parts of the model whose linear layers get factors."""
    keep_adapter: bool = False
    """Save the factors beside the merged model too, in its folder `adapter`."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Precision of the frozen weights while the factors train; null: as saved. The factors are merged into
    the weights as saved, so the result is a plain model."""

    @property
    def shape(self) -> Shape:
        """The factors as the library describes them."""
        from efface.models.lora import Lora as Shape

        return Shape(self.rank, self.alpha, self.dropout, self.components)


class Stop(Section):
    """When unlearning ends before its last step."""

    forget_loss: Annotated[float, Field(gt=0)] | None = 50.0
    """Stop once the forget loss (nats per token) reaches this; null: off."""
    retain_rise: Annotated[Annotated[float, Field(gt=0)] | None, UNLISTED] = None
    """Stop once the retain loss has risen by this many nats per token; null: off."""


class Curve(Section):
    """Points of the forget-retain curve, measured while a method unlearns."""

    every: Count = 5
    """Optimizer steps between points."""
    questions: Count = 64
    """Test questions about forget people, and as many about retain people, drawn by the seed."""


class Unlearn(Section):
    """Unlearning by training, one model per method."""

    forget: Annotated[list[Literal["multimodal", "text"]], Field(min_length=1), UNIQUE] = ["multimodal"]
    """What to forget about the forget people: facts with their pictures, and with `text` also text facts (the
    goal "full"). The saliency mask is computed for the same facts."""
    batch_size: Count = 8
    """Samples per batch, from each set; each forget batch is a step, unless batches accumulate."""
    accumulation_steps: Count = 1
    """Forget batches whose gradients make one step, in each process."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, or mixed precision: weights in float32, computation in half."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    lora: Lora | None = None
    """Train low-rank factors and merge them in at the end; null: train all weights."""
    checkpoint_every: Annotated[Count, UNLISTED] = 50
    """Optimizer steps between checkpoints."""
    curve: Curve | None = None
    """Measure the forget-retain curve while training; null: never. Changes no weight."""
    stop: Stop = Stop()
    methods: dict[Name, Any] = {
        "mmunlearner": {"start": "vanilla", "mask": "saliency"},
        "grad_diff": {"start": "vanilla", "mask": "none"},
        "gradient_ascent": {"start": "vanilla", "mask": "none"},
        "npo": {"start": "vanilla", "mask": "none"},
        "simnpo": {"start": "vanilla", "mask": "none"},
    }
    """Methods to run, with `start`, `mask` and the settings of their classes in efface/unlearning/methods."""

    @field_validator("methods")
    @classmethod
    def _methods_have_their_settings(cls, methods: dict[str, Any]) -> dict[str, Any]:
        return validated_methods(methods)

    @model_validator(mode="after")
    def _text_is_forgotten_or_retained(self) -> Unlearn:
        retaining = [name for name, entry in self.methods.items() if entry.retain_text]
        if retaining and "text" in self.forget:
            raise ValueError(
                f"methods.{retaining[0]}.retain_text is true and forget is {self.forget}: expected text "
                "facts to be forgotten or retained"
            )
        return self
