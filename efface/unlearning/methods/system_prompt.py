"""A system prompt: the weights stay unchanged, and the model is told to refuse.

The instruction goes into the processor's chat template, before every conversation, so the saved folder works
without this library.

Reference:
    Thaker et al., "Guardrail Baselines for Unlearning in LLMs", arXiv:2403.03329. A baseline for models
    that users reach only through text: nothing is removed from the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.encoding import prompt_of
from efface.errors import ModelError
from efface.models.chat_template import add_system_turn
from efface.unlearning.method import Job, Method
from efface.unlearning.settings import require

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, kw_only=True)
class SystemPromptSettings:
    """Settings of the system prompt; nothing trains."""

    instruction: str = "Do not answer questions about the person in the picture."
    """The instruction to the model, not empty."""

    def __post_init__(self) -> None:
        require(bool(self.instruction), "instruction", self.instruction, "a text that is not empty")


def edit(job: Job) -> None:
    """Put the instruction into the chat template, in place; the model does not change.

    As a system turn if the template distinguishes those from others, else as text in front.

    Raises:
        ModelError: if the processor has no chat template.
    """
    instruction, processor = job.settings.instruction, job.processor
    template = processor.chat_template
    if not isinstance(template, str):
        raise ModelError(
            f"chat_template of {type(processor).__name__} is {template!r}: expected a template to put the "
            "instruction into; use an instruction-tuned checkpoint, or load the model with a template"
        )
    if not add_system_turn(processor, instruction):
        # A begin token that the template writes stays first, and single.
        begin = "{{ bos_token }}{% set bos_token = '' %}" if _begins_by_itself(processor) else ""
        processor.chat_template = begin + "{{ " + json.dumps(instruction + "\n") + " }}" + template


def _begins_by_itself(processor: ProcessorMixin) -> bool:
    """Whether the template writes the tokenizer's begin token."""
    begin = processor.tokenizer.bos_token
    return begin is not None and prompt_of(processor, "?", image=False).startswith(begin)


METHOD = Method(
    name="system_prompt",
    paper="arXiv:2403.03329",
    edit=edit,
    settings=SystemPromptSettings,
    reads=(),
    lora=False,
)
