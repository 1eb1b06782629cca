"""What the model's chat template writes: the prompt of a question, and the answer after it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from efface.errors import DataError
from efface.models.chat_template import RENDERING_ERRORS

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def prompt_of(processor: ProcessorMixin, question: str, *, image: bool | int) -> str:
    """One user turn as the model's chat template writes it, ready for the answer.

    Args:
        processor: the model's processor.
        question: text of the turn.
        image: number of pictures before the question.

    Raises:
        DataError: if the processor has no chat template, or its template omits pictures.
    """
    if processor.chat_template is None:
        raise DataError(
            f"{type(processor).__name__} has no chat template, so the model cannot be asked questions; "
            "use an instruction-tuned checkpoint, or set `base.chat_template` (load_model's "
            "`chat_template`) to a file with a Jinja template"
        )
    prompt = _prompt(processor, question, int(image))
    if image > 1 and _prompt(processor, question, int(image) - 1) == prompt:
        raise DataError(
            f"the chat template of {type(processor).__name__} writes fewer than {image} pictures before a "
            "question; ask about one picture at a time, or set `base.chat_template` to a template that "
            "writes them all"
        )
    return prompt


def full_text(processor: ProcessorMixin, question: str, answer: str, *, image: bool | int) -> str:
    """Prompt, answer and end token as one text.

    Separator and end token are those that the chat template writes for a user turn and an assistant turn,
    without white space after the end token. If a template writes no end token, as LLaVA-1.5's, the
    tokenizer's is used.

    Args:
        processor: the model's processor.
        question: text of the user turn.
        answer: text of the assistant turn.
        image: number of pictures before the question.

    Raises:
        DataError: if the template does not write the answer after the prompt.
    """
    prompt = prompt_of(processor, question, image=image)
    parts = [{"type": "text", "text": answer}]
    for content in (parts, answer):  # some templates write the assistant's turn only from plain text
        turns: list[Any] = [_user_turn(question, int(image)), {"role": "assistant", "content": content}]
        try:
            text = str(processor.apply_chat_template(turns)).rstrip()
        except RENDERING_ERRORS:
            continue
        if text.startswith(prompt) and answer.strip() in text[len(prompt) :] and repr(parts) not in text:
            ends = not text.endswith(answer.strip())
            return text if ends else f"{text}{processor.tokenizer.eos_token}"
    raise DataError(
        f"the chat template of {type(processor).__name__} does not write an answer ({answer[:60]!r}) after "
        f"its own prompt, which ends in {prompt[-40:]!r}; if the prompt opens a block of thinking, switch it "
        "off in `base.template_arguments` (`enable_thinking: false`), or set `base.chat_template` to another "
        "template"
    )


def check_template(processor: ProcessorMixin) -> None:
    """Refuse a chat template that writes no picture, no answer after its prompt, or no generation prompt.

    Raises:
        DataError: saying what it does not write.
    """
    prompt = prompt_of(processor, "?", image=True)
    if takes_suffix(processor):
        return
    begin = full_text(processor, "?", "Yes", image=True)[len(prompt) :].partition("Yes")[0].strip()
    if begin and prompt == str(processor.apply_chat_template([_user_turn("?", 1)])):
        raise DataError(
            f"the chat template of {type(processor).__name__} writes {begin!r} before an answer, but not "
            "at the end of a prompt (add_generation_prompt), so the model would have to write it itself; set "
            "`base.chat_template` to a template that ends in it if add_generation_prompt is true"
        )


def takes_suffix(processor: ProcessorMixin) -> bool:
    """Whether the processor takes the answer apart from the prompt (prefix language models: PaliGemma)."""
    return "suffix" in inspect.signature(processor.__call__).parameters


def _user_turn(question: str, pictures: int) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def _prompt(processor: ProcessorMixin, question: str, pictures: int) -> str:
    turns = [_user_turn(question, pictures)]
    try:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    except RENDERING_ERRORS as error:
        raise DataError(
            f"the chat template of {type(processor).__name__} cannot write a question with {pictures} "
            f"pictures ({type(error).__name__}: {error}); set `base.chat_template` to a template that writes "
            "it"
        ) from error
