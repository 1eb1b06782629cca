"""Samples and prompts as processor output, one by one or in batches."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from efface.data.samples import Sample
from efface.encoding.batches import IGNORED, Inputs, collate
from efface.encoding.processing import answer_lengths, process
from efface.encoding.prompts import full_text, prompt_of, takes_suffix
from efface.errors import DataError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_CHUNK = 64  # samples that go through the processor in one call


class Encoder:
    """Encodes samples one by one or in batches, and caches encoded ones while memory allows.

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
        missing = [i for i in dict.fromkeys(indices) if i not in self._cache]
        encoded = dict(zip(missing, encode(self.processor, [self.samples[i] for i in missing]), strict=True))
        rows = [encoded[i] if i in encoded else self._cache[i] for i in indices]
        for i, row in encoded.items():
            self._cache[i] = row
            self._used += _bytes(row)
            while self._used > self._limit:
                _, dropped = self._cache.popitem(last=False)
                self._used -= _bytes(dropped)
        return collate(rows, self.processor.tokenizer.pad_token_id)

    def batches(
        self,
        size: int,
        indices: Sequence[int] | None = None,
        *,
        label: str | None = None,
        share: Callable[[list[list[int]]], list[list[int]]] | None = None,
    ) -> Iterator[Inputs]:
        """Batches of at most ``size`` samples, multimodal and text-only kept apart, each in the given order.

        With a ``label`` a progress bar of that name is shown. ``share`` picks the batches of this process
        (``efface.processes.share``); the others are not encoded.
        """
        groups = self._groups(size, indices)
        groups = groups if share is None else share(groups)
        with tqdm(
            total=sum(map(len, groups)),
            desc=label,
            unit="sample",
            mininterval=0.5,
            **({"disable": True} if label is None else {}),  # else as TQDM_DISABLE says
        ) as progress:
            for group in groups:
                yield self.batch(group)
                progress.update(len(group))

    def count(self, size: int, indices: Sequence[int] | None = None) -> int:
        """Number of batches that ``batches`` yields for these samples."""
        return len(self._groups(size, indices))

    def _groups(self, size: int, indices: Sequence[int] | None) -> list[list[int]]:
        indices = range(len(self.samples)) if indices is None else indices
        groups = []
        for multimodal in (True, False):
            alike = [i for i in indices if (self.samples[i].image_bytes is not None) == multimodal]
            groups += [alike[start : start + size] for start in range(0, len(alike), size)]
        return groups


def encode(processor: ProcessorMixin, samples: Sequence[Sample]) -> list[Inputs]:
    """Processor output of each sample with ``labels``; batch axis of size 1, no padding."""
    rows: dict[int, Inputs] = {}
    for multimodal in (True, False):
        alike = [i for i, sample in enumerate(samples) if (sample.image_bytes is not None) == multimodal]
        for start in range(0, len(alike), _CHUNK):
            chunk = alike[start : start + _CHUNK]
            rows.update(zip(chunk, _encode_alike(processor, [samples[i] for i in chunk]), strict=True))
    return [rows[i] for i in range(len(samples))]


def encode_prompts(
    processor: ProcessorMixin, questions: Sequence[str], images: Sequence[Any]
) -> list[Inputs]:
    """Processor output of prompts alone, for generation; ``images`` holds a picture, a list of pictures or
    None per question."""
    pictures = [[] if image is None else [*image] if isinstance(image, list) else [image] for image in images]
    rows: dict[int, Inputs] = {}
    for multimodal in (True, False):
        alike = [i for i, album in enumerate(pictures) if bool(album) == multimodal]
        texts = [prompt_of(processor, questions[i], image=len(pictures[i])) for i in alike]
        albums = [pictures[i] for i in alike] if multimodal else None
        rows.update(zip(alike, process(processor, texts, albums), strict=True))
    return [{key: value for key, value in rows[i].items() if key != "labels"} for i in range(len(questions))]


def draw(count: int, size: int | None, seed: int) -> list[int]:
    """``size`` of ``count`` indices without replacement, in increasing order; all when ``size`` is None."""
    if size is None or size >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), size))


def _encode_alike(processor: ProcessorMixin, samples: Sequence[Sample]) -> list[Inputs]:
    """Encode samples that all have pictures, or all none."""
    counts = [len(sample.encoded_images) for sample in samples]
    prompts = [prompt_of(processor, s.question, image=n) for s, n in zip(samples, counts, strict=True)]
    pictures = [sample.images for sample in samples] if samples[0].image_bytes is not None else None
    if takes_suffix(processor):
        return process(processor, prompts, pictures, [sample.answer for sample in samples])
    texts = [
        full_text(processor, s.question, s.answer, image=n) for s, n in zip(samples, counts, strict=True)
    ]
    rows = process(processor, texts, pictures)
    lengths = answer_lengths(processor, prompts, texts, rows)
    for sample, row, length in zip(samples, rows, lengths, strict=True):
        if length is None:
            raise DataError(
                f"sample {sample.sample_id}: the tokens of the prompt are not the beginning of the tokens of "
                f"prompt and answer (answer {sample.answer!r}), or the processor appends others, so the "
                "answer cannot be labelled; if the prompt opens a block of thinking, switch it off in "
                "`base.template_arguments` (`enable_thinking: false`), or set `base.chat_template` to "
                "a template whose generation prompt ends in white space or a special token"
            )
        row["labels"] = row["input_ids"].clone()
        row["labels"][:, :-length] = IGNORED
    return rows


def _bytes(row: Inputs) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.values())
