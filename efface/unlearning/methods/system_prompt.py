"""A system prompt: the weights stay, and the model is told to refuse.

The instruction goes into the processor's chat template, in front of every conversation, so the folder that
is saved needs no code of ours: whoever applies its chat template asks with the instruction in place.

Reference:
    Thaker et al., "Guardrail Baselines for Unlearning in LLMs", arXiv:2403.03329. A baseline for access by
    text: nothing is removed from the model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from efface.encoding import prompt_of
from efface.errors import ModelError
from efface.models.system_turn import add_system_turn
from efface.settings import Settings
from efface.unlearning.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

TRAINS = False
SETTINGS = {"instruction": {"type": "string", "minLength": 1}}  # what the model is told


def edit(model: PreTrainedModel, processor: ProcessorMixin, settings: Settings) -> None:
    """Put the instruction into the chat template, in place; the model is left as it is.

    As a system turn where the template writes those in a way of their own, else as text in front.

    Raises:
        ModelError: if the processor has no chat template.
    """
    instruction = settings["instruction"]
    template = processor.chat_template
    if not isinstance(template, str):
        raise ModelError(
            f"{type(processor).__name__} has no chat template to put an instruction into; use an "
            "instruction-tuned checkpoint, or set `chat_template` in its processor"
        )
    if not add_system_turn(processor, instruction):
        # A begin token that the template writes stays first, and stays one.
        begin = "{{ bos_token }}{% set bos_token = '' %}" if _begins_by_itself(processor) else ""
        processor.chat_template = begin + "{{ " + json.dumps(instruction + "\n") + " }}" + template


def _begins_by_itself(processor: ProcessorMixin) -> bool:
    """Whether the template writes the tokenizer's begin token."""
    begin = processor.tokenizer.bos_token
    return begin is not None and prompt_of(processor, "?", image=False).startswith(begin)


METHOD = Method(
    name="system_prompt", paper="arXiv:2403.03329", retain_loss=None, edit=edit, settings=SETTINGS
)
