"""From samples to padded model inputs, through the model's own processor.

The prompt is the chat template of one user turn; the full text is prompt + answer + end token, which goes
through the processor with the pictures. Labels are what comes after the prompt's tokens: prompt, picture and
padding positions are -100, so only the answer and its end token are ever in a loss.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from tqdm import tqdm

from efface.data.samples import Sample
from efface.encoding.batches import IGNORED, Inputs, collate, split, to_device
from efface.encoding.processing import process, prompt_lengths, takes_suffix
from efface.errors import DataError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = [
    "IGNORED",
    "Encoder",
    "Inputs",
    "collate",
    "draw",
    "encode",
    "encode_prompts",
    "full_text",
    "prompt_of",
    "split",
    "to_device",
]

_CHUNK = 64


def prompt_of(processor: ProcessorMixin, question: str, *, image: bool | int) -> str:
    """One user turn as the model's chat template writes it, ready for the answer.

    Args:
        processor: the model's processor.
        question: what is asked.
        image: number of pictures before the question.

    Raises:
        DataError: if the processor has no chat template, or its template leaves pictures out.
    """
    if processor.chat_template is None:
        raise DataError(
            f"{type(processor).__name__} has no chat template, so questions cannot be put to the model; use "
            "an instruction-tuned checkpoint, or name a file with a Jinja template as `base.chat_template` "
            "in params.yaml (load_model's `chat_template`)"
        )
    prompt = _turn(processor, question, int(image))
    if image > 1 and _turn(processor, question, int(image) - 1) == prompt:
        raise DataError(
            f"the chat template of {type(processor).__name__} writes fewer than {image} pictures before a "
            "question; ask about one picture at a time, or name a template that writes them all as "
            "`base.chat_template`"
        )
    return prompt


def _turn(processor: ProcessorMixin, question: str, pictures: int) -> str:
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    turns: list[Any] = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    try:
        return processor.apply_chat_template(turns, add_generation_prompt=True)
    except TemplateError as error:
        raise DataError(
            f"the chat template of {type(processor).__name__} refuses a question with {pictures} pictures: "
            f"{error}; name a template that writes it as `base.chat_template`"
        ) from error


def full_text(processor: ProcessorMixin, prompt: str, answer: str) -> str:
    """Prompt, answer and end token as one text."""
    gap = "" if prompt[-1:].isspace() else " "
    return f"{prompt}{gap}{answer}{processor.tokenizer.eos_token}"


class Encoder:
    """Encodes samples one by one or in batches, and remembers what it encoded while memory allows.

    Args:
        processor: the model's processor.
        samples: the samples to encode, each with any number of pictures or none.
        cache_bytes: memory for encoded samples; the least recently used ones are dropped beyond it.
    """

    def __init__(self, processor: ProcessorMixin, samples: Sequence[Sample], *, cache_bytes: int = 2**31):
        self.processor = processor
        self.samples = samples
        self._cache: OrderedDict[int, Inputs] = OrderedDict()
        self._used = 0
        self._limit = cache_bytes

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int]) -> Inputs:
        """Model inputs of the given samples with ``labels`` (B, T), right-padded.

        Text-only and multimodal samples may be mixed wherever the family's inputs can say which is which.
        """
        return collate([*self._encoded(indices)], self.processor.tokenizer.pad_token_id)

    def batches(
        self,
        size: int,
        indices: Sequence[int] | None = None,
        *,
        label: str | None = None,
        share: Callable[[list[list[int]]], list[list[int]]] | None = None,
    ) -> Iterator[Inputs]:
        """Batches of at most ``size`` samples, multimodal and text-only kept apart, each in the order given.

        With a ``label`` they pass under a progress bar of that name. ``share`` picks those of this process
        (``efface.processes.share``); the others are not encoded.
        """
        indices = range(len(self.samples)) if indices is None else indices
        parts = []
        for multimodal in (True, False):
            chosen = [i for i in indices if (self.samples[i].image_bytes is not None) == multimodal]
            parts += [chosen[start : start + size] for start in range(0, len(chosen), size)]
        parts = parts if share is None else share(parts)
        with tqdm(
            total=sum(map(len, parts)), desc=label, unit="sample", mininterval=0.5, disable=label is None
        ) as progress:
            for part in parts:
                yield self.batch(part)
                progress.update(len(part))

    def count(self, size: int, indices: Sequence[int] | None = None) -> int:
        """How many batches ``batches`` makes of these samples."""
        indices = range(len(self.samples)) if indices is None else indices
        pictured = sum(self.samples[i].image_bytes is not None for i in indices)
        return -(-pictured // size) - (-(len(indices) - pictured) // size)

    def _encoded(self, indices: Sequence[int]) -> list[Inputs]:
        missing = [i for i in dict.fromkeys(indices) if i not in self._cache]
        fresh = dict(zip(missing, encode(self.processor, [self.samples[i] for i in missing]), strict=True))
        rows = [fresh[i] if i in fresh else self._cache[i] for i in indices]
        for i, row in fresh.items():
            self._remember(i, row)
        return rows

    def _remember(self, index: int, row: Inputs) -> None:
        self._cache[index] = row
        self._used += _bytes(row)
        while self._used > self._limit:
            _, dropped = self._cache.popitem(last=False)
            self._used -= _bytes(dropped)


def encode(processor: ProcessorMixin, samples: Sequence[Sample]) -> list[Inputs]:
    """Processor output of each sample with ``labels``, batch axis of size 1 kept, no padding."""
    rows: list[Inputs | None] = [None] * len(samples)
    for multimodal in (True, False):
        group = [i for i, sample in enumerate(samples) if (sample.image_bytes is not None) == multimodal]
        for start in range(0, len(group), _CHUNK):
            chunk = group[start : start + _CHUNK]
            for index, row in zip(chunk, _encode_alike(processor, [samples[i] for i in chunk]), strict=True):
                rows[index] = row
    return [row for row in rows if row is not None]


def encode_prompts(
    processor: ProcessorMixin, questions: Sequence[str], images: Sequence[Any]
) -> list[Inputs]:
    """Processor output of prompts alone, for generation; ``images`` holds a picture, a list of pictures or
    None per question."""
    pictures = [[] if image is None else [*image] if isinstance(image, list) else [image] for image in images]
    rows: list[Inputs | None] = [None] * len(questions)
    for multimodal in (True, False):
        group = [i for i, shown in enumerate(pictures) if bool(shown) == multimodal]
        texts = [prompt_of(processor, questions[i], image=len(pictures[i])) for i in group]
        shown = [pictures[i] for i in group] if multimodal else None
        for index, row in zip(group, process(processor, texts, shown), strict=True):
            rows[index] = {key: value for key, value in row.items() if key != "labels"}
    return [row for row in rows if row is not None]


def draw(count: int, size: int | None, seed: int) -> list[int]:
    """``size`` of ``count`` indices without replacement, in increasing order; all when ``size`` is None."""
    if size is None or size >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), size))


def _encode_alike(processor: ProcessorMixin, samples: Sequence[Sample]) -> list[Inputs]:
    multimodal = samples[0].image_bytes is not None
    prompts = [prompt_of(processor, s.question, image=len(s.encoded_images)) for s in samples]
    pictures = [sample.images for sample in samples] if multimodal else None
    if takes_suffix(processor):
        return process(processor, prompts, pictures, [sample.answer for sample in samples])
    texts = [full_text(processor, prompt, s.answer) for prompt, s in zip(prompts, samples, strict=True)]
    rows = process(processor, texts, pictures)
    starts = prompt_lengths(processor, prompts, texts, rows)
    for i, (row, sample, told) in enumerate(zip(rows, samples, starts, strict=True)):
        start = told or _prompt_length(processor, prompts[i], sample, row)
        labels = row["input_ids"].clone()
        labels[:, :start] = IGNORED
        row["labels"] = labels
    return rows


def _prompt_length(processor: ProcessorMixin, prompt: str, sample: Sample, row: Inputs) -> int:
    """How many tokens at the beginning of a row are its prompt, by reading the prompt with its pictures."""
    (read,) = process(processor, [prompt], [sample.images] if sample.image_bytes is not None else None)
    start = read["input_ids"].shape[1]
    if not torch.equal(row["input_ids"][:, :start], read["input_ids"]) or start >= row["input_ids"].shape[1]:
        raise DataError(
            f"sample {sample.sample_id}: the tokens of the prompt are not the beginning of the tokens "
            f"of prompt and answer (answer {sample.answer!r}), so the answer cannot be told apart; give "
            "the tokenizer's chat template a generation prompt that ends in white space or a special "
            "token"
        )
    return start


def _bytes(row: Inputs) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.values())
