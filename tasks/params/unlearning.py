"""The section about unlearning by training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

import efface
from tasks.params.section import Count, Rate, Section, Share, Weight

UNLEARNING_METHODS = tuple(
    sorted(file.stem for file in Path(efface.__file__).parent.glob("unlearning/methods/[a-z]*.py"))
)
"""A method is a file; finding the names this way loads no torch."""


class UnlearningMethod(Section):
    """One way of unlearning by training."""

    mask: Literal["saliency", "random", "magnitude", "none"]
    """Which weights the forget term may change: those of that file in data/masks; none: all."""
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


class Stop(Section):
    """When unlearning ends before its last step."""

    forget_loss: Annotated[float, Field(gt=0)] | None
    """Stop once the forget loss (nats per token) reaches this; null: off."""
    retain_rise: Annotated[float, Field(gt=0)] | None
    """Stop once the retain loss has risen by this many nats per token; null: off."""


class Unlearn(Section):
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
