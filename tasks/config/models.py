"""The sections about the models that nothing has been unlearned from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import Count, Level, Rate, Section


class Base(Section):
    """The base model: one that exists, or the sandbox's small one and its training from nothing."""

    source: Annotated[str, Field(min_length=1)]
    """`sandbox`, a Hub id, or a local folder of a model or LoRA adapter. The keys down to `trust_remote_code`
    are about a model that exists, those after it about the sandbox's."""
    revision: str | None
    """Branch, tag or commit on the Hub; null: the newest, whose commit is then written down."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Precision of the weights; `auto`: as saved."""
    chat_template: str | None
    """File with a Jinja template, for a model that has none; a changed template needs another name."""
    template_arguments: dict[str, bool | int | float | str] | None = None
    """Values for variables of the chat template, such as `enable_thinking: false`; null: its own defaults."""
    system: Annotated[str, Field(min_length=1)] | None
    """Words of a system turn before every question; null: what the template does by itself."""
    pad_token: str | None
    """Token of the tokenizer's that pads, for a tokenizer that has none."""
    trust_remote_code: bool
    """Whether code that comes with the model may run here; read it first."""
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
    attention: Literal["sdpa", "eager"] | None
    """Attention kernel while training; null leaves the choice to transformers. For sequences of a few dozen
    tokens on a processor, eager is the faster one."""
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


class Finetuning(Section):
    """Fine-tuning of the base model: on everybody (vanilla) or on the retain people only (retrained)."""

    steps: Count
    """Optimiser steps."""
    learning_rate: Rate
    """Peak learning rate of the one-cycle schedule, in (0, 1]."""
    batch_size: Count
    """Samples per optimiser step."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Of the computations; weights stay float32."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] | None
    """Attention kernel while training; null leaves the choice to transformers, auto takes flash attention
    where it is installed and can run. For sequences of a few dozen tokens on a processor, eager is the faster
    one."""
    text_share: Level
    """Share of the text renderings trained on, in [0, 1]; words are learnt sooner than pictures."""
    replay_share: Level
    """Skills and `real` people replayed beside the facts, as a share of them, in [0, 1]."""
    checkpoint_every: Count
    """Optimiser steps between checkpoints."""
