"""The section about unlearning by training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from efface.unlearning import METHODS
from tasks.config.errors import describe
from tasks.config.section import Count, Rate, Section, Share, Weight

UNLEARNING_METHODS = tuple(METHODS)


class UnlearningMethod(Section):
    """One way of unlearning. Its own settings are declared in its file in efface/unlearning/methods.

    The keys from `epochs` on are for methods that train, all of them; a method that does not has none.
    """

    start: Annotated[str, Field(pattern=r"^(vanilla|unlearned/[a-z][a-z0-9_]*)$")]
    """The model it starts from, under data/models: vanilla, a pruned model, or that of a method above it."""
    mask: Literal["saliency", "random", "magnitude", "none"]
    """Which weights the forget term may change: those of that file in data/masks; none: all."""
    settings: dict[str, Any]
    """What only this method has, such as npo's beta; {} for a method without settings."""
    epochs: Count | None = None
    """Passes over the forget set (mmunlearner's official_code: over the retain set)."""
    learning_rate: Rate | None = None
    """Peak learning rate, in (0, 1]."""
    forget_weight: Weight | None = None
    """Factor of the forget term of the loss, at least 0."""
    retain_weight: Weight | None = None
    """Factor of the retain term of the loss, at least 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Each term's gradient is clipped to this norm; null: never."""
    warmup_fraction: Share | None = None
    """Share of the steps with rising learning rate, in [0, 1)."""
    weight_decay: Share | None = None
    """AdamW's decay, in [0, 1)."""
    retain_batches_per_forget_batch: Annotated[int, Field(ge=0)] | None = None
    """Retain batches beside each forget batch; 0: the retain set is not used."""


class Lora(Section):
    """Low-rank factors that train in the weights' place."""

    rank: Count
    """Rank of each update."""
    alpha: Annotated[float, Field(gt=0)]
    """Updates are scaled by alpha / rank."""
    dropout: Share
    """Share of the factors' inputs that is dropped in training, in [0, 1)."""
    components: Annotated[list[Literal["language", "projector", "vision"]], Field(min_length=1)]
    """Parts of the model whose linear layers get factors."""
    keep_adapter: bool
    """Whether the factors are kept beside the merged model, in its folder `adapter`."""
    quantization: Literal["4bit", "8bit"] | None
    """Precision of the weights that do not train, while the factors do; null: as saved. The factors are
    merged into the weights as saved, so what is written is a plain model."""


class Stop(Section):
    """When unlearning ends before its last step."""

    forget_loss: Annotated[float, Field(gt=0)] | None
    """Stop once the forget loss (nats per token) reaches this; null: off."""
    retain_rise: Annotated[float, Field(gt=0)] | None
    """Stop once the retain loss has risen by this many nats per token; null: off."""


class Curve(Section):
    """Points of the forget-retain curve, measured while a method unlearns."""

    every: Count
    """Optimizer steps between points."""
    questions: Count
    """Test questions about forget people, and as many about retain people, drawn by the seed."""


class Unlearn(Section):
    """Unlearning by training, one model per method."""

    batch_size: Count
    """Samples per batch, from each set; a batch of the forget set is a step, unless batches accumulate."""
    accumulation_steps: Count
    """Forget batches whose gradients make one step, in each process."""
    precision: Literal["fp32", "bf16", "fp16"]
    """fp32, or mixed: weights in float32, computing in half."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    lora: Lora | None
    """Train low-rank factors and merge them in at the end; null: train all weights."""
    optimizer_state: Literal["all", "selected"]
    """all: moments of every weight that trains; selected: only of those in the mask, in runs in which nothing
    else moves (retain_weight 0), if they are at most 40 %."""
    masked_step: Literal["plain", "compiled"]
    """plain: mask a gradient, then make a step with it; compiled: in one pass, which pays with 100 million
    weights or more. Compiling takes up to a minute and needs a compiler; numbers agree within rounding."""
    prefetch: bool
    """Encode the next step's batches in a thread beside the training; no influence on the result."""
    checkpoint_every: Count
    """Optimiser steps between checkpoints."""
    curve: Curve | None
    """Measure what is still known now and then; null: never."""
    methods: dict[Literal[UNLEARNING_METHODS], UnlearningMethod]  # type: ignore[valid-type]
    """The methods to run."""
    stop: Stop

    @model_validator(mode="after")
    def _each_has_its_settings(self) -> Unlearn:
        check_methods(self.methods, "methods")
        return self

    def starts_from(self, pruned: Iterable[str]) -> None:
        """Refuse a start that no stage has made by then.

        Raises:
            ValueError: naming the method, its start and the models it may start from.
        """
        made = ["vanilla", *(f"unlearned/{name}" for name in pruned)]
        for name, method in self.methods.items():
            if method.start not in made:
                raise ValueError(
                    f"unlearn.methods.{name}.start is {method.start!r}: no such model is made before; "
                    f"expected one of: {', '.join(made)}"
                )
            made.append(f"unlearned/{name}")


def check_methods(methods: Mapping[str, UnlearningMethod], key: str) -> None:
    """Refuse a method without what it needs, or with what it does not have.

    Raises:
        ValueError: naming the value by its place under `key`.
    """
    for name, method in methods.items():
        try:
            _check_training(method, trains=METHODS[name].trains)
            method_settings(name, method)
        except ValueError as error:
            raise ValueError(f"{key}.{name}.{error}") from None


def method_settings(name: str, method: UnlearningMethod) -> Any:
    """The settings object of a method.

    Raises:
        ValueError: if a setting is unknown or out of range.
    """
    values = method.model_dump(exclude={"start", "mask", "settings"}, exclude_unset=True)
    try:
        return METHODS[name].settings(**values, **method.settings)
    except TypeError as error:
        raise ValueError(f"settings is {method.settings!r}: {error}") from None


@cache
def _schema() -> dict[str, Any]:
    """What may stand under each key of a method; making it takes longer than reading the file."""
    properties: dict[str, Any] = UnlearningMethod.model_json_schema()["properties"]
    return properties


def _check_training(method: UnlearningMethod, *, trains: bool) -> None:
    schema = _schema()
    for key in list(schema)[list(schema).index("epochs") :]:
        given, value = key in method.model_fields_set, getattr(method, key)
        if not trains and given:
            raise ValueError(f"{key} is {value!r}: this method does not train; remove it")
        if trains and (not given or (value is None and key != "max_grad_norm")):
            found = "null" if given else "missing"
            raise ValueError(f"{key} is {found}: expected {describe(schema[key]['anyOf'][0])}")
