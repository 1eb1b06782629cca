"""Fine-tuning on facts, which makes the base, vanilla and retrained models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface.data.samples import Sample
from efface.encoding import Encoder, draw
from efface.unlearning.settings import TrainingSettings
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import Precision, TrainingConfig, TrainingResult
from efface.unlearning.training.loop import Terms, train

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
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 200,
    label: str = "fine-tuning",
) -> TrainingResult:
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
        gradient_checkpointing: recompute activations in the backward pass.
        checkpoints: where to save progress and to resume from.
        checkpoint_every: steps between checkpoints.
        label: text before the progress bar.
    """
    settings = TrainingSettings(steps=steps, learning_rate=learning_rate, warmup_fraction=0.1)
    config = TrainingConfig(
        batch_size=batch_size,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    terms = Terms(retain=Encoder(processor, samples), settings=settings)
    return train(model, terms, config, checkpoints=checkpoints, label=label)


def with_replay(
    facts: Sequence[Sample], pretrained: Sequence[Sample], *, share: float, seed: int
) -> list[Sample]:
    """The facts plus ``share`` times as many samples of earlier training, so that these are retained."""
    indices = draw(len(pretrained), round(share * len(facts)), seed)
    return [*facts, *(pretrained[i] for i in indices)]
