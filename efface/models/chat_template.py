"""Changes to a processor's chat template: a system turn, values of its variables, a fixed date.

They are saved with the folder, whose template then gives the same prompts without this library.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
from jinja2 import TemplateError

from efface.errors import ModelError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

RENDER_SECONDS = 20
RENDER_BYTES = 1 << 30
"""Time and memory that a template may need to write one question."""
RENDERING_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template raises that cannot write a conversation: its own refusal, or an expression that fails."""
_QUESTION = {"type": "text", "text": "?"}
_USERS = [{"role": "user", "content": [*images, _QUESTION]} for images in ([], [{"type": "image"}])]
_DATE = {
    "%Y": "2025",
    "%y": "25",
    "%m": "01",
    "%-m": "1",
    "%B": "January",
    "%b": "Jan",
    "%d": "01",
    "%-d": "1",
    "%e": " 1",
    "%A": "Wednesday",
    "%a": "Wed",
    "%j": "001",
    "%H": "12",
    "%I": "12",
    "%p": "PM",
    "%M": "00",
    "%S": "00",
    "%F": "2025-01-01",
}
_FROZEN_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace({key!r}, {value!r})" for key, value in _DATE.items())
    + " }}{%- endmacro -%}"
)


@contextlib.contextmanager
def bounded_rendering() -> Iterator[None]:
    """Limit time and, on Linux, memory of the block: a model's template may loop forever.

    No effect outside the main thread, the only one to receive signals.

    Raises:
        ModelError: if the block needs more.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = soft
    if sys.platform == "linux" and soft == resource.RLIM_INFINITY:
        limit = psutil.Process().memory_info().vms + RENDER_BYTES
    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    except (TimeoutError, MemoryError, RecursionError) as error:
        raise ModelError(
            f"the chat template takes more than {RENDER_SECONDS} s or {RENDER_BYTES >> 30} GiB to write one "
            "question: it is damaged or hostile; set `base.chat_template` to another one"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def freeze_date(processor: ProcessorMixin) -> None:
    """Make a template that writes today's date write 1 January 2025, noon, so that prompts never change.

    Args:
        processor: a processor with a chat template; changed in place.
    """
    template = processor.chat_template
    if isinstance(template, str) and "strftime_now" in template and _FROZEN_DATE not in template:
        processor.chat_template = _FROZEN_DATE + template


def set_arguments(processor: ProcessorMixin, arguments: Mapping[str, Any]) -> None:
    """Give variables of a processor's chat template fixed values.

    Args:
        processor: a processor with a chat template; changed in place.
        arguments: name -> value, such as ``enable_thinking`` -> False.

    Raises:
        ModelError: if the template does not read a variable.
    """
    template = processor.chat_template
    if not isinstance(template, str):
        raise ModelError(
            "template_arguments are set and the processor has several named chat templates; set "
            "`base.chat_template` to a file with the one to use"
        )
    for name, value in arguments.items():
        if name not in template:
            raise ModelError(
                f"template_arguments has the key {name!r}, which the chat template does not read; remove it, "
                "or correct its spelling"
            )
        template = f"{{%- set {name} = {value!r} -%}}{template}"
    processor.chat_template = template


def add_system_turn(processor: ProcessorMixin, words: str) -> bool:
    """Begin every conversation with a system turn.

    Args:
        processor: a processor with a chat template; changed in place.
        words: text of the system turn.

    Returns:
        False, without any change, if the template does not distinguish system turns from others, or does
        not write them before questions with a picture.
    """
    template = processor.chat_template
    if not isinstance(template, str):  # none, or several named ones
        return False
    parts = [{"type": "text", "text": words}]
    for content in (parts, words):
        if all(_is_written_apart(processor, content, words, user) for user in _USERS):
            turn = json.dumps({"role": "system", "content": content})
            processor.chat_template = "{% set messages = [" + turn + "] + messages %}" + template
            return True
    return False


def check_rendering(processor: ProcessorMixin) -> None:
    """Refuse a template that cannot write a question and an answer in bounded time and memory.

    Other faults of a template are reported where it is used.

    Raises:
        ModelError: if it needs more than `RENDER_SECONDS` or `RENDER_BYTES`.
    """
    with bounded_rendering():
        for user in _USERS:
            _render(processor, [user])
            _render(processor, [user, {"role": "assistant", "content": [_QUESTION]}])


def _is_written_apart(processor: ProcessorMixin, content: Any, words: str, user: dict[str, Any]) -> bool:
    """Whether the template writes a system turn, and differently from a turn of the model."""
    system, assistant = (
        _render(processor, [{"role": role, "content": content}, user]) for role in ("system", "assistant")
    )
    return system is not None and words.strip() in system and system != assistant


def _render(processor: ProcessorMixin, turns: list[dict[str, Any]]) -> str | None:
    """The turns as the template writes them; None if it cannot write a role, an order or a content."""
    try:
        return str(processor.apply_chat_template(turns))
    except RENDERING_ERRORS:
        return None
