"""Calling a model's processor: one unpadded row per text, whatever the family."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efface.data.batches import Inputs
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
    # Templates of several families write the begin token themselves: a second one is never meant.
    if tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token):
        options["add_special_tokens"] = False
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


def _with_labels(row: Inputs, suffixes: Sequence[str] | None) -> Inputs:
    """The answer and its end token are what the tokenizer marks as second part."""
    if suffixes is not None:
        row["labels"] = row["input_ids"].masked_fill(row["token_type_ids"] == 0, -100)
    return row
