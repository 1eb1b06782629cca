"""Models with random weights at several sizes, and samples to measure them on."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.config.models import Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.data.samples import Sample
    from efface.encoding import Inputs

BATCH_SIZE = 8
SHAPES: dict[str, dict[str, Any]] = {
    "100M": {
        "vision": {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": 64,
            "patch_size": 16,
        },
        "text": {
            "hidden_size": 640,
            "intermediate_size": 1728,
            "num_hidden_layers": 16,
            "num_attention_heads": 10,
            "num_key_value_heads": 10,
            "max_position_embeddings": 2048,
        },
        "vocabulary": 8192,
    },
    "0.5B": {
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 64,
            "patch_size": 16,
        },
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 2048,
        },
        "vocabulary": 32064,
    },
    "7B": {
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        "text": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
        "vocabulary": 32064,
        "dtype": "bfloat16",
    },
}
"""LLaVA with these towers. ``tiny`` is the sandbox's own model; 7B is LLaVA-1.5's, for a GPU."""


@dataclass(frozen=True)
class Subject:
    """A model and what it is measured on.

    Attributes:
        size: name of the size.
        model: in evaluation mode.
        processor: its processor.
        samples: half with a picture, half without.
        batches: the samples in batches of eight, on the model's device.
    """

    size: str
    model: PreTrainedModel
    processor: ProcessorMixin
    samples: list[Sample]
    batches: list[Inputs]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.model.parameters())


def build(size: str, *, samples: int, device: str, words: int = 8) -> Subject:
    """A model of a size with random weights, and samples with questions of so many words."""
    import torch

    from efface.encoding import Encoder, to_device

    torch.manual_seed(0)
    rows = random_samples(samples, words)
    model, processor = _tiny(rows) if size == "tiny" else _llava(SHAPES[size], device)
    model = model.to(device).eval()
    batches = [to_device(batch, model.device) for batch in Encoder(processor, rows).batches(BATCH_SIZE)]
    dtypes = {"pixel_values": model.dtype}
    batches = [{key: v.to(dtypes.get(key, v.dtype)) for key, v in batch.items()} for batch in batches]
    return Subject(size, model, processor, rows, batches)


def _tiny(rows: list[Sample]) -> tuple[Any, Any]:
    from efface import sandbox

    base = Base()
    fillers = [f"word{i}" for i in range(400)]  # as many words as the sandbox's vocabulary has
    tokenizer = sandbox.build_tokenizer([*fillers, *(f"{s.question} {s.answer}" for s in rows)])
    processor = sandbox.build_processor(tokenizer, image_size=base.image_size, patch_size=base.patch_size)
    names = ["image_size", "patch_size", "width", "mlp_width", "vision_layers", "language_layers", "heads"]
    return sandbox.build_model(tokenizer, **{name: getattr(base, name) for name in names}), processor


def _llava(shape: dict[str, Any], device: str) -> tuple[Any, Any]:
    import torch

    from tests.models.llava import llava

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, shape.get("dtype", "float32")))
    try:
        with torch.device(device):
            return llava(**{key: value for key, value in shape.items() if key != "dtype"})
    finally:
        torch.set_default_dtype(before)


def random_samples(count: int, words: int = 8, options: int = 0) -> list[Sample]:
    """The first half with a picture of noise, the rest without; answers of one to six words.

    Args:
        count: number of samples.
        words: words of the question.
        options: answers to choose from; 0 asks an open question.
    """
    import numpy as np
    from PIL import Image

    from efface.data.samples import Sample

    samples = []
    for i in range(count):
        pictured = i < count // 2
        pixels = np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        question = ["Which", "colour", "does", "this", "person", "like", *["and"] * words][: words - 1]
        row = {
            "sample_id": str(i),
            "entity_id": f"fictitious/{i:03d}",
            "split": "retain",
            "part": "train",
            "modality": "multimodal" if pictured else "text",
            "task": "choice" if options else "qa",
            "attribute": "residence",
            "image": buffer.getvalue() if pictured else None,
            "question": " ".join(question) + " ?",
            "answer": " ".join(["red", "and", "green", "and", "blue", "white"][: 1 + i % 6]),
            "pair_id": str(i),
        }
        samples.append(Sample.from_row(row))
    if not options:
        return samples
    wrong = ["white", "green", "blue and red", "Stone", "Marsh and Field", "Lake", "Hill and Ada", "Ben"]
    return [
        replace(s, options=tuple(sorted({s.answer, *wrong[: options - 1]})), part="test", set="retain")
        for s in samples
    ]
