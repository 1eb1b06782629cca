"""Settings and outcome of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efface.errors import EffaceError
from efface.unlearning.training.precision import PrecisionName


class DivergenceError(EffaceError):
    """Training produced a number that is not finite."""

    history: list[dict[str, float]]
    """One record per step that went well."""


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop.

    Attributes:
        learning_rate: peak learning rate.
        steps: number of steps; None counts ``epochs``.
        epochs: passes over the forget set (over the retain set when there is no forget set, and when forget
            and retain steps alternate).
        batch_size: samples per batch.
        accumulation_steps: forget batches whose gradients make one step.
        precision: ``fp32``, or mixed with ``bf16`` or ``fp16``.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        forget_weight: factor of the forget term.
        retain_weight: factor of the retain term; at 0 the retain set is not touched.
        retain_batches_per_forget_batch: retain batches that meet one forget batch.
        max_grad_norm: each term's gradient is scaled down to this norm; None leaves it.
        warmup_fraction: share of the steps with a linear rise, in [0, 1); a cosine to zero follows.
        weight_decay: AdamW's decoupled weight decay.
        optimizer_state: ``all``: moments of every weight that trains; ``selected``: only of those that a mask
            lets change, where no retain term moves the others and the mask selects few enough
            (``efface.unlearning.training.masked``).
        masked_step: ``plain``: mask a gradient, then make a step with it; ``compiled``: in one pass, which is
            compiled first. The numbers agree within rounding.
        prefetch: encode the next step's batches in a thread beside the training.
        seed: seed of the batch order and of dropout.
        checkpoint_every: steps between checkpoints.
        stop_forget_loss: end when a forget batch's NLL passes this many nats per token; None never.
        stop_retain_rise: end when the retain NLL is this much above its start (both averaged over 10
            steps); None never.
    """

    learning_rate: float
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    accumulation_steps: int = 1
    precision: PrecisionName = "fp32"
    gradient_checkpointing: bool = False
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    retain_batches_per_forget_batch: int = 1
    max_grad_norm: float | None = 1.0
    warmup_fraction: float = 0.0
    weight_decay: float = 0.0
    optimizer_state: Literal["all", "selected"] = "all"
    masked_step: Literal["plain", "compiled"] = "plain"
    prefetch: bool = False
    seed: int = 0
    checkpoint_every: int = 100
    stop_forget_loss: float | None = None
    stop_retain_rise: float | None = None


@dataclass(frozen=True)
class LoopResult:
    """How a run went.

    Attributes:
        steps: steps done.
        history: per step ``step, learning_rate`` and, as far as the terms exist, ``forget_loss, retain_loss``
            (NLL in nats per token), ``forget_grad_norm, retain_grad_norm`` (before clipping). A step that
            float16 left out has ``skipped`` in the norms' place. A watched step has what was
            measured after it.
        stopped_by: the stop rule that ended the run, with its step, or None when it ran its length.
    """

    steps: int
    history: list[dict[str, float]]
    stopped_by: str | None
