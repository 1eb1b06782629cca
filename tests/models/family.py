"""What one family's builder returns, and the sizes it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class Family:
    """One family of multimodal LLMs, buildable offline with random weights.

    Attributes:
        name: transformers' model type.
        title: the name people use.
        build: makes an untrained tiny model and its processor; weights come from torch's global generator.
        needs: packages its processor needs beyond the project's own.
    """

    name: str
    title: str
    build: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    needs: tuple[str, ...] = ()


def attach_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Tell the model which tokens begin, end and pad a text."""
    tokenizer = processor.tokenizer
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
