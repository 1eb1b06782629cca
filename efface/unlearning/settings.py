"""Settings of every method that trains; a method's own file adds its own settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Clip = Literal["sum", "apart"]
Projector = Literal["plain", "sine"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a method trains. Methods override defaults in their files.

    Raises:
        ValueError: if a value is out of range; it names the key, the value and what is allowed.
    """

    steps: int | None = None
    """Optimizer steps, at least 1; None: the number that results from ``epochs``."""
    epochs: int = 2
    """Passes over the forget set, at least 1; over the retain set if there is no forget set, or if forget and
    retain steps alternate (mmunlearner's official_code)."""
    learning_rate: float = 4.0e-5
    """Peak learning rate of AdamW, in (0, 1]."""
    forget_weight: float = 1.0
    """Factor of the forget term, at least 0."""
    retain_weight: float = 1.0
    """Factor of the retain term, at least 0; at 0 the retain set is not used."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm, above 0; None: never."""
    clip: Clip = "sum"
    """What is scaled down: the ``sum`` of the forget and the retain gradient, as in the published codes, or
    each ``apart``. Under a mask, and if steps alternate, each is always scaled down apart."""
    warmup_fraction: float = 0.0
    """Share of the steps in which the learning rate rises linearly, in [0, 1); a cosine to zero follows."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, in [0, 1)."""
    retain_batches_per_forget_batch: int = 3
    """Retain batches beside each forget batch, at least 0; at 0 the retain set is not used."""
    sam_radius: float = 0.0
    """Sharpness-aware step (arXiv:2502.05374): take the forget gradient at theta + radius g / ||g||, at
    least 0; 0: at theta. Costs one more pass per forget batch."""
    adversarial_radius: float = 0.0
    """Latent adversary (arXiv:2407.15549): take the forget term with each sample's hidden states at a layer
    moved this far towards the answer, at least 0; 0: not moved. Costs one more pass per forget batch."""
    adversarial_layer: int = 1
    """Decoder layer after which hidden states are moved, counted from 1."""
    projector: Projector = "plain"
    """How the projector's weights train: ``plain`` like all others, or ``sine``: W + sin(D) with W fixed and
    D trained, even under LoRA. SineProject: arXiv:2511.18444."""

    def __post_init__(self) -> None:
        require(
            self.steps is None or self.steps >= 1, "steps", self.steps, "None or a whole number from 1 on"
        )
        require(self.epochs >= 1, "epochs", self.epochs, "a whole number from 1 on")
        require(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "a number in (0, 1]")
        require(0 <= self.forget_weight < math.inf, "forget_weight", self.forget_weight, "a number from 0 on")
        require(0 <= self.retain_weight < math.inf, "retain_weight", self.retain_weight, "a number from 0 on")
        require(
            self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
            "max_grad_norm",
            self.max_grad_norm,
            "a number above 0, or None",
        )
        require(self.clip in get_args(Clip), "clip", self.clip, f"one of: {', '.join(get_args(Clip))}")
        require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "a number in [0, 1)")
        require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "a number in [0, 1)")
        require(
            self.retain_batches_per_forget_batch >= 0,
            "retain_batches_per_forget_batch",
            self.retain_batches_per_forget_batch,
            "a whole number from 0 on",
        )
        for key in ("sam_radius", "adversarial_radius"):
            require(0 <= getattr(self, key) < math.inf, key, getattr(self, key), "a number from 0 on")
        require(
            self.adversarial_layer >= 1,
            "adversarial_layer",
            self.adversarial_layer,
            "a whole number from 1 on",
        )
        projectors = get_args(Projector)
        require(self.projector in projectors, "projector", self.projector, f"one of: {', '.join(projectors)}")

    @property
    def uses_retain_set(self) -> bool:
        """Whether the retain set is used at all."""
        return bool(self.retain_weight and self.retain_batches_per_forget_batch)

    @property
    def alternating(self) -> bool:
        """Whether steps on the forget and the retain gradient alternate; otherwise one step takes both."""
        return False


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names key, value and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}: expected {allowed}")
