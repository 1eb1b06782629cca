"""A system prompt: the weights stay, and the model is told to refuse.

The instruction goes into the processor's chat template, in front of every conversation, so the folder that
is saved needs no code of ours: whoever applies its chat template asks with the instruction in place.

Reference:
    Thaker et al., "Guardrail Baselines for Unlearning in LLMs", arXiv:2403.03329. A baseline for access by
    text: nothing is removed from the model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from efface.errors import ModelError
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
    parts: list[dict[str, str]] = [{"type": "text", "text": instruction}]
    front = "{{ " + json.dumps(instruction + "\n") + " }}"
    for content in (parts, instruction):
        if _is_written_apart(processor, content, instruction):
            turn = json.dumps({"role": "system", "content": content})
            front = "{% set messages = [" + turn + "] + messages %}"
            break
    processor.chat_template = front + template


def _is_written_apart(processor: ProcessorMixin, content: Any, instruction: str) -> bool:
    """Whether the template writes a system turn, and not as it would write what the model said."""
    user = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    try:
        written = [
            processor.apply_chat_template([{"role": role, "content": content}, user])
            for role in ("system", "assistant")
        ]
    except (TemplateError, TypeError):  # templates refuse roles, or kinds of content, that they do not know
        return False
    return instruction in written[0] and written[0] != written[1]


METHOD = Method(
    name="system_prompt", paper="arXiv:2403.03329", retain_loss=None, edit=edit, settings=SETTINGS
)
