"""Configuration and result of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from efface.errors import EffaceError
from efface.unlearning.settings import require

Precision = Literal["fp32", "bf16", "fp16"]


class DivergenceError(EffaceError):
    """A loss or gradient is not finite."""

    history: list[dict[str, float]]
    """One record per step before it."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of the training loop that do not depend on the method.

    Raises:
        ValueError: if a value is out of range; it names the key, the value and what is allowed.
    """

    batch_size: int = 8
    """Samples per batch, at least 1."""
    accumulation_steps: int = 1
    """Forget batches whose gradients make one step, at least 1."""
    precision: Precision = "fp32"
    """``fp32``, or mixed precision: weights in float32, computation in ``bf16`` or ``fp16``."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: int = 0
    """Seed of the batch order and of dropout."""
    checkpoint_every: int = 50
    """Optimizer steps between checkpoints, at least 1."""
    stop_forget_loss: float | None = None
    """End the run when a forget batch's loss exceeds this, in nats per token; None: never."""
    stop_retain_rise: float | None = None
    """End the run when the retain loss exceeds its initial value by this, in nats per token, both averaged
    over ten steps; None: never."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulation_steps", "checkpoint_every"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 on")
        require(self.precision in ("fp32", "bf16", "fp16"), "precision", self.precision, "fp32, bf16 or fp16")
        for key in ("stop_forget_loss", "stop_retain_rise"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "None or a number above 0")


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        steps: number of steps done.
        history: per step ``step, learning_rate`` and, as far as the terms exist, ``forget_loss, retain_loss``
            (NLL in nats per token) and ``forget_grad_norm, retain_grad_norm``, or ``total_grad_norm`` if the
            sum of the gradients is clipped. Norms are those before clipping. A step skipped because of
            float16 overflow has ``skipped`` instead. An evaluated step has the evaluation's values.
        stopped_by: the stop rule that ended the run, with its step; None if the run reached its full length.
        details: what a method measured or selected, such as its layers, as plain values.
    """

    steps: int
    history: list[dict[str, float]]
    stopped_by: str | None
    details: dict[str, Any] = field(default_factory=dict)
