"""Calling a model's processor: one unpadded row per text, whatever the family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from efface.encoding.batches import IGNORED, Inputs
from efface.encoding.prompts import takes_suffix
from efface.errors import DataError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_REJECTIONS = (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError, OSError, AttributeError)


def process(
    processor: ProcessorMixin,
    texts: Sequence[str],
    pictures: Sequence[Sequence[Any]] | None,
    suffixes: Sequence[str] | None = None,
) -> list[Inputs]:
    """Processor output of each text; batch axis of size 1, no padding.

    Texts go through the processor together if each has one picture of one fixed size, so that a row does not
    depend on the rest of the call; otherwise one by one.

    Args:
        processor: the model's processor.
        texts: output of the chat template.
        pictures: the pictures of each text; None for texts without.
        suffixes: answers, for processors that take them apart from the prompt.

    Raises:
        DataError: if the processor rejects a picture.
    """

    def call(part: slice) -> Inputs:
        albums = None if pictures is None else pictures[part]
        return _call(processor, texts[part], albums, None if suffixes is None else suffixes[part])

    if len(texts) < 2:
        return [call(slice(i, i + 1)) for i in range(len(texts))]
    first = call(slice(0, 1))
    if _has_a_row_per_text(first, 1):
        try:
            batch = call(slice(None))
        except DataError:
            batch = None  # one by one, so that the error names the text with the faulty picture
        if batch is not None and _has_a_row_per_text(batch, len(texts)):
            return _unpadded(batch)
    return [first, *(call(slice(i, i + 1)) for i in range(1, len(texts)))]


def answer_lengths(
    processor: ProcessorMixin, prompts: Sequence[str], texts: Sequence[str], rows: Sequence[Inputs]
) -> list[int | None]:
    """Number of tokens at the end of each row that are its answer and end token.

    A processor expands a picture into many tokens, all of them in the prompt, so the end of a row is compared
    with the tokens of the plain text.

    Args:
        processor: the model's processor.
        prompts: the prompt of each text.
        texts: prompt, answer and end token of each.
        rows: output of `process` for the texts.

    Returns:
        A number from 1 to the length of the row minus 1; None if the text does not begin with the tokens of
        the prompt, or the row does not end with those of the answer.
    """
    tokenizer, lengths = processor.tokenizer, list[int | None]()
    # Padded as in `process`: a tokenizer stores its last padding and is saved with it.
    options: dict[str, Any] = {"padding": tokenizer.pad_token_id is not None, "padding_side": "right"}
    options |= {"return_attention_mask": True, **_special_tokens(tokenizer, texts)}
    before, whole = (_token_ids(tokenizer(list(part), **options)) for part in (prompts, texts))
    for prompt, text, row in zip(before, whole, rows, strict=True):
        answer, ids = text[len(prompt) :], row["input_ids"][0].tolist()
        fits = text[: len(prompt)] == prompt and 0 < len(answer) < len(ids) and ids[-len(answer) :] == answer
        lengths.append(len(answer) if fits else None)
    return lengths


def _token_ids(encoded: Any) -> list[list[int]]:
    """Ids of each text, without the padding at their end."""
    return [
        ids[: sum(mask)] for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]


def _has_a_row_per_text(batch: Inputs, count: int) -> bool:
    """Whether there are only tensors along the tokens and plain pixels, one picture per text."""
    shape = batch["input_ids"].shape
    pictures = {key: value for key, value in batch.items() if value.shape != shape}
    return all(key == "pixel_values" and v.dim() == 4 and len(v) == count for key, v in pictures.items())


def _unpadded(batch: Inputs) -> list[Inputs]:
    rows = []
    shape = batch["input_ids"].shape
    for i in range(shape[0]):
        real = batch["attention_mask"][i].bool()
        rows.append(
            {
                key: value[i : i + 1][:, real] if value.shape == shape else value[i : i + 1]
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
        # The processor refuses texts without a picture; this is what it does, without the picture.
        pairs = None if suffixes is None else [suffix + tokenizer.eos_token for suffix in suffixes]
        prefixes = [f"{tokenizer.bos_token}{text}\n" for text in texts]
        encoded = tokenizer(
            prefixes, text_pair=pairs, add_special_tokens=False, return_token_type_ids=True, **options
        )
        return _with_labels(_tensors(encoded), suffixes)
    options |= _special_tokens(tokenizer, texts)
    if suffixes is not None:
        options["suffix"] = list(suffixes)
    if "mm_token_type_ids" in processor.model_input_names:  # some leave them out by default
        options["return_mm_token_type_ids"] = True
    if hasattr(processor, "return_for_text_completion"):  # Chameleon appends a token to the text otherwise
        options["return_for_text_completion"] = True
    inputs: list[Any] = list(texts)
    if pictures is not None and hasattr(processor, "default_image_dims"):
        # IDEFICS puts pictures that are given apart behind the text, so behind the answer.
        inputs = [_interleaved(text, album) for text, album in zip(texts, pictures, strict=True)]
    elif pictures is not None:
        options["images"] = [list(album) for album in pictures]
        if hasattr(processor, "multi_page") and all(len(album) == 1 for album in pictures):
            options["images"] = [album[0] for album in pictures]  # GOT-OCR takes a list for pages of one text
    try:
        encoded = processor(text=inputs, **options)
    except _REJECTIONS as error:
        if pictures is None:
            raise
        raise _rejection(processor, texts[0], pictures[0], options, error) from error
    return _with_labels(_tensors(encoded), suffixes)


def _interleaved(text: str, pictures: Sequence[Any]) -> list[Any]:
    """A text with its pictures in the places of the placeholders."""
    parts: list[Any] = re.split("(?:<fake_token_around_image>)*<image>(?:<fake_token_around_image>)*", text)
    if len(parts) != len(pictures) + 1:
        raise DataError(
            f"the chat template writes {len(parts) - 1} times <image> for {len(pictures)} pictures; set "
            "`base.chat_template` to a template that writes it once for each picture"
        )
    items = [item for pair in zip(parts, pictures, strict=False) for item in pair]
    return [item for item in [*items, parts[-1]] if item != ""]


def _rejection(
    processor: ProcessorMixin,
    text: str,
    pictures: Sequence[Any],
    options: dict[str, Any],
    error: Exception,
) -> DataError:
    """Why a processor takes no text with its pictures: the pictures, their number, or the processor."""
    sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
    what = f"{len(pictures)} pictures" if len(pictures) > 1 else "a picture"
    advice = "give it a larger or less elongated picture, or leave the sample out"
    if len(pictures) > 1:
        advice = "if this family takes one picture per question, ask about one at a time; else " + advice
    elif "images" in options:
        plain = Image.new("RGB", (512, 512), "grey")
        album = [plain] if isinstance(options["images"][0], list) else plain
        try:
            processor(text=[text], **options | {"images": [album]})
        except _REJECTIONS:
            advice = (
                "it rejects a plain one of 512 x 512 pixels as well: the chat template may write another "
                "placeholder than it expects (set `base.chat_template`), or it does not work with this "
                "version of transformers: choose another model"
            )
    return DataError(
        f"{type(processor).__name__} rejects {what} of {sizes} pixels (text {text[:60]!r}): {error}; {advice}"
    )


def _tensors(encoded: Any) -> Inputs:
    """The tensors of a processor's output, with pixels in float32 whatever their dtype was."""
    tensors = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
    return {key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}


def _special_tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Options against a second begin token, where the template already writes one."""
    begins = tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begins else {}


def _with_labels(row: Inputs, suffixes: Sequence[str] | None) -> Inputs:
    """Add labels: the answer and its end token are what the tokenizer marks as the second part."""
    if suffixes is not None:
        row["labels"] = row["input_ids"].masked_fill(row["token_type_ids"] == 0, IGNORED)
    return row
