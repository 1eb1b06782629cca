"""Calling a model's processor: one unpadded row per text, whatever the family."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efface.encoding.batches import Inputs
from efface.errors import DataError

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def process(
    processor: ProcessorMixin,
    texts: Sequence[str],
    pictures: Sequence[Sequence[Any]] | None,
    suffixes: Sequence[str] | None = None,
) -> list[Inputs]:
    """Processor output of each text, batch axis of size 1 kept, no padding.

    Many texts go through the processor in one call where each has one picture of one fixed size, so that a
    row does not depend on its company; otherwise one by one.

    Args:
        processor: the model's processor.
        texts: what the chat template made.
        pictures: the pictures of each text; None for texts without.
        suffixes: answers, for processors that take them apart from the prompt.

    Raises:
        DataError: if the processor rejects a picture.
    """

    def call(part: slice) -> Inputs:
        shown = None if pictures is None else pictures[part]
        return _call(processor, texts[part], shown, None if suffixes is None else suffixes[part])

    if len(texts) < 2:
        return [call(slice(i, i + 1)) for i in range(len(texts))]
    first = call(slice(0, 1))
    if _has_a_row_per_text(first, 1):
        try:
            batch = call(slice(None))
        except DataError:
            batch = None  # one by one, so that the error names the text whose picture is at fault
        if batch is not None and _has_a_row_per_text(batch, len(texts)):
            return _unpadded(batch)
    return [first, *(call(slice(i, i + 1)) for i in range(1, len(texts)))]


def prompt_lengths(
    processor: ProcessorMixin, prompts: Sequence[str], texts: Sequence[str], rows: Sequence[Inputs]
) -> list[int | None]:
    """How many tokens at the beginning of each row are its prompt, told from the words alone.

    A processor writes many tokens for a picture, all of them in the prompt; the answer has those of the text
    as it stands. Reading every picture again to count the tokens of its prompt would double the work.

    Args:
        processor: the model's processor.
        prompts: what the chat template made.
        texts: prompt, answer and end token of each.
        rows: what `process` made of the texts.

    Returns:
        A number from 1 to the length of the row less 1; None where the words do not tell.
    """
    tokenizer, found = processor.tokenizer, list[int | None]()
    # Padded as in `process`: a tokenizer keeps how it last padded, and is saved with it.
    options: dict[str, Any] = {"padding": tokenizer.pad_token_id is not None, "padding_side": "right"}
    options |= {"return_attention_mask": True, **_special_tokens(tokenizer, texts)}
    before, whole = (_token_ids(tokenizer(list(part), **options)) for part in (prompts, texts))
    for prompt, text, row in zip(before, whole, rows, strict=True):
        answer, ids = text[len(prompt) :], row["input_ids"][0].tolist()
        start = len(ids) - len(answer)
        told = text[: len(prompt)] == prompt and 0 < start < len(ids) and ids[start:] == answer
        found.append(start if told else None)
    return found


def _token_ids(encoded: Any) -> list[list[int]]:
    """Ids of each text, without the padding at their end."""
    return [
        ids[: sum(mask)] for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]


def takes_suffix(processor: ProcessorMixin) -> bool:
    """Whether the processor takes the answer apart from the prompt (prefix language models: PaliGemma)."""
    return "suffix" in inspect.signature(processor.__call__).parameters


def _has_a_row_per_text(batch: Inputs, count: int) -> bool:
    """Tensors along the tokens, and at most plain pixels, one picture per text."""
    shape = batch["input_ids"].shape
    others = {key: value for key, value in batch.items() if value.shape != shape}
    return all(key == "pixel_values" and v.dim() == 4 and len(v) == count for key, v in others.items())


def _unpadded(batch: Inputs) -> list[Inputs]:
    rows = []
    shape = batch["input_ids"].shape
    for i in range(shape[0]):
        keep = batch["attention_mask"][i].bool()
        rows.append(
            {
                key: value[i : i + 1][:, keep] if value.shape == shape else value[i : i + 1]
                for key, value in batch.items()
            }
        )
    return rows


def _call(
    processor: ProcessorMixin,
    texts: Sequence[str],
    pictures: Sequence[Sequence[Any]] | None,
    suffixes: Sequence[str] | None,
) -> Inputs:
    tokenizer = processor.tokenizer
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt", "padding_side": "right"}
    if tokenizer.pad_token_id is None and len(texts) == 1:
        options["padding"] = False
    if pictures is None and takes_suffix(processor):
        # The processor refuses texts without a picture; this is what it would do with one, less the picture.
        pairs = None if suffixes is None else [suffix + tokenizer.eos_token for suffix in suffixes]
        prefixes = [f"{tokenizer.bos_token}{text}\n" for text in texts]
        encoded = tokenizer(
            prefixes, text_pair=pairs, add_special_tokens=False, return_token_type_ids=True, **options
        )
        return _with_labels(dict(encoded), suffixes)
    options |= _special_tokens(tokenizer, texts)
    if suffixes is not None:
        options["suffix"] = list(suffixes)
    if pictures is not None:
        options["images"] = [list(shown) for shown in pictures]
    try:
        encoded = processor(text=list(texts), **options)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError, OSError) as error:
        if pictures is None:
            raise
        sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures[0])
        several = len(pictures[0]) > 1
        what = f"{len(pictures[0])} pictures" if several else "a picture"
        advice = "give it a larger or less elongated picture, or leave the sample out"
        if several:
            advice = "if this family takes one picture per question, ask about one at a time; else " + advice
        raise DataError(
            f"{type(processor).__name__} rejects {what} of {sizes} pixels (text {texts[0][:60]!r}): {error}; "
            f"{advice}"
        ) from error
    return dict(encoded) if suffixes is None else _with_labels(dict(encoded), suffixes)


def _special_tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Templates of several families write the begin token themselves: a second one is never meant."""
    written = tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if written else {}


def _with_labels(row: Inputs, suffixes: Sequence[str] | None) -> Inputs:
    """The answer and its end token are what the tokenizer marks as second part."""
    if suffixes is not None:
        row["labels"] = row["input_ids"].masked_fill(row["token_type_ids"] == 0, -100)
    return row
