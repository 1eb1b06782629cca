"""A system turn in front of every conversation, written into the chat template.

So the folder that is saved needs no code of ours: whoever applies its template asks with the turn in place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_QUESTION = {"type": "text", "text": "?"}
_USERS = [{"role": "user", "content": [*images, _QUESTION]} for images in ([], [{"type": "image"}])]


def add_system_turn(processor: ProcessorMixin, words: str) -> bool:
    """Begin every conversation with a system turn, in the processor's chat template.

    Args:
        processor: a processor with a chat template; changed in place.
        words: what the system turn says.

    Returns:
        False, and nothing is changed, if the template does not write system turns in a way of their own, or
        not before questions with a picture.
    """
    template = processor.chat_template
    if not isinstance(template, str):  # none, or several with names
        return False
    parts = [{"type": "text", "text": words}]
    for content in (parts, words):
        if all(_is_written_apart(processor, content, words, user) for user in _USERS):
            turn = json.dumps({"role": "system", "content": content})
            processor.chat_template = "{% set messages = [" + turn + "] + messages %}" + template
            return True
    return False


def _is_written_apart(processor: ProcessorMixin, content: Any, words: str, user: dict[str, Any]) -> bool:
    """Whether the template writes a system turn, and not as it would write what the model said."""
    system, assistant = (
        _written(processor, [{"role": role, "content": content}, user]) for role in ("system", "assistant")
    )
    return system is not None and words.strip() in system and system != assistant


def _written(processor: ProcessorMixin, turns: list[dict[str, Any]]) -> str | None:
    """The turns as the template writes them; None if it refuses a role, an order or a kind of content."""
    try:
        return str(processor.apply_chat_template(turns))
    except (TemplateError, TypeError):
        return None
