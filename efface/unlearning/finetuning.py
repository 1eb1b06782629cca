"""Fine-tuning on facts: how base, vanilla and retrained models are made. The loop with a retain term only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface.data.samples import Sample
from efface.encoding import Encoder, draw
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import LoopConfig, LoopResult
from efface.unlearning.training.loop import Terms, train
from efface.unlearning.training.precision import PrecisionName

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def finetune(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    precision: PrecisionName = "fp32",
    gradient_checkpointing: bool = False,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 200,
    label: str = "fine-tuning",
) -> LoopResult:
    """Train all weights in place on the answers to the samples' questions.

    Args:
        model: a multimodal LLM.
        processor: its processor.
        samples: training facts, multimodal and text-only.
        steps: optimizer steps.
        learning_rate: peak of a warm-up (a tenth of the steps) and cosine schedule.
        batch_size: samples per step.
        seed: seed of the batch order.
        precision: ``fp32``, or mixed with ``bf16`` or ``fp16``.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        checkpoints: where to save progress and to resume from.
        checkpoint_every: steps between checkpoints.
        label: text before the progress bar.
    """
    config = LoopConfig(
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        warmup_fraction=0.1,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    terms = Terms(retain=Encoder(processor, samples))
    return train(model, terms, config, checkpoints=checkpoints, label=label)


def with_replay(facts: Sequence[Sample], known: Sequence[Sample], *, share: float, seed: int) -> list[Sample]:
    """The facts plus a fixed draw of what the model already knows, ``share`` as many, so that it is not
    forgotten."""
    kept = draw(len(known), round(share * len(facts)), seed)
    return [*facts, *(known[i] for i in kept)]
