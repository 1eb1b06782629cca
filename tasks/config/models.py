"""Sections about the reference models: base, vanilla and retrained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import UNLISTED, Count, Level, Rate, Section


class Base(Section):
    """The base model: an existing one, or the sandbox's small one, trained from scratch."""

    source: Annotated[str, Field(min_length=1)] = "sandbox"
    """`sandbox`, a Hub id, or a local folder of a model or LoRA adapter. The keys down to `trust_remote_code`
    are about an existing model, the rest about the sandbox's."""
    revision: Annotated[str | None, UNLISTED] = None
    """Branch, tag or commit on the Hub; null: the newest, whose commit is recorded."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto`: as saved."""
    chat_template: Annotated[str | None, UNLISTED] = None
    """File with a Jinja template, for a model without one; a changed template needs another name."""
    template_arguments: Annotated[dict[str, bool | int | float | str] | None, UNLISTED] = None
    """Values for variables of the chat template, such as `enable_thinking: false`; null: its own defaults."""
    system: Annotated[Annotated[str, Field(min_length=1)] | None, UNLISTED] = None
    """System turn before every question; null: the template's own behaviour."""
    pad_token: Annotated[str | None, UNLISTED] = None
    """Padding token, for a tokenizer without one."""
    trust_remote_code: Annotated[bool, UNLISTED] = False
    """Whether code that comes with the model may run; read it first."""
    decoder: Annotated[Annotated[str, Field(min_length=1)] | None, UNLISTED] = None
    """Language model in the sandbox's model: `smollm2`, a Hub id, a folder, or a GGUF file; null: a small one
    of random weights. The vision tower and the projector are the sandbox's own."""
    align_steps: Annotated[int, Field(ge=0), UNLISTED] = 0
    """Optimizer steps in which only the projector learns the skills, at ten times the learning rate; for a
    decoder that knows language."""
    image_size: Annotated[int, Field(ge=16, le=512), UNLISTED] = 48
    """Side of the picture the vision tower sees, pixels; a multiple of `patch_size`."""
    patch_size: Annotated[int, Field(ge=2, le=64), UNLISTED] = 12
    """Side of one patch, pixels."""
    width: Annotated[int, Field(ge=8), UNLISTED] = 96
    """Hidden units of both towers; a multiple of twice `heads`."""
    mlp_width: Annotated[int, Field(ge=8), UNLISTED] = 384
    """Neurons of each MLP."""
    vision_layers: Annotated[int, Field(ge=2), UNLISTED] = 3
    """Blocks of the vision tower; the last but one is read, so at least 2."""
    language_layers: Annotated[Count, UNLISTED] = 4
    """Blocks of the decoder."""
    heads: Annotated[Count, UNLISTED] = 4
    """Attention heads of both towers."""
    vision_steps: Count = 1000
    """Optimizer steps of attribute pre-training."""
    vision_learning_rate: Annotated[Rate, UNLISTED] = 1.0e-3
    """Peak learning rate of attribute pre-training, in (0, 1]."""
    steps: Count = 700
    """Optimizer steps of vision-language training."""
    learning_rate: Annotated[Rate, UNLISTED] = 1.5e-3
    """Peak learning rate of vision-language training, in (0, 1]."""
    attention: Annotated[Literal["sdpa", "eager"] | None, UNLISTED] = "eager"
    """Attention kernel while training; null leaves the choice to transformers. For sequences of a few dozen
    tokens on a CPU, eager is faster."""
    batch_size: Annotated[Count, UNLISTED] = 32
    """Samples per optimizer step."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Base:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}: expected a multiple of patch_size ({self.patch_size})"
            )
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}: expected a multiple of twice heads ({2 * self.heads})")
        return self


class Finetune(Section):
    """Fine-tuning of the base model into vanilla (forget and retain people) and retrained (retain people)."""

    learning_rate: Rate = 1.5e-3
    """Peak learning rate of the one-cycle schedule, in (0, 1]."""
    batch_size: Count = 32
    """Samples per optimizer step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the computation, the sandbox's base model included; weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    attention: Annotated[Literal["auto", "sdpa", "eager", "flash_attention_2"] | None, UNLISTED] = "eager"
    """Attention kernel while training; null leaves the choice to transformers, auto uses flash attention
    where it is installed and can run. For sequences of a few dozen tokens on a CPU, eager is faster."""
    text_share: Annotated[Level, UNLISTED] = 0.5
    """Share of the text renderings to train on, in [0, 1]; text is learnt sooner than pictures."""
    replay_share: Annotated[Level, UNLISTED] = 0.2
    """Skill samples and `real` people replayed with the facts, as a share of the facts, in [0, 1]."""
    checkpoint_every: Annotated[Count, UNLISTED] = 200
    """Optimizer steps between checkpoints."""


class Vanilla(Section):
    """The base model fine-tuned on the forget and retain people."""

    steps: Count = 900
    """Optimizer steps."""


class Retrained(Section):
    """The base model fine-tuned on the retain people only."""

    steps: Count = 810
    """Optimizer steps; as many passes over its facts as vanilla makes."""
