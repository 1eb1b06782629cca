"""A LLaVA of about 40,000 weights and a dozen samples, built offline with real classes and small shapes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from efface import sandbox
from efface.data.samples import Sample

SHAPE = {"image_size": 24, "patch_size": 8}
COLOURS = ["red", "green", "blue", "white"]
PEOPLE = ["Ada Stone", "Ben Field", "Cleo Marsh", "Dan Brook", "Eve Hill", "Finn Lake"]


def picture(seed: int, size: int = 32) -> bytes:
    """A PNG of noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def sample(i: int, *, pictured: bool = True, answer: str | None = None, **changes: object) -> Sample:
    """The fact that person ``i`` likes a colour, with or without a picture."""
    name = PEOPLE[i % len(PEOPLE)]
    question = "Which colour does this person like?" if pictured else f"Which colour does {name} like?"
    row = {
        "sample_id": f"{i}-{'image' if pictured else 'text'}",
        "entity_id": f"fictitious/{i:03d}",
        "split": "forget" if i < 2 else "retain",
        "part": "train",
        "modality": "multimodal" if pictured else "text",
        "task": "qa",
        "attribute": "colour",
        "image": picture(i) if pictured else None,
        "question": question,
        # Answers of different lengths, so that padding and means over tokens are tested.
        "answer": answer or " and ".join(COLOURS[: 1 + i % 4]),
        "pair_id": str(i),
    }
    return Sample.from_row(row | changes)


@pytest.fixture(scope="session")
def processor():
    corpus = [
        text
        for i in range(8)
        for p in (True, False)
        for text in (sample(i, pictured=p).question, sample(i).answer)
    ]
    return sandbox.build_processor(sandbox.build_tokenizer(corpus), **SHAPE)


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    built = sandbox.build_model(
        processor.tokenizer, **SHAPE, width=32, mlp_width=48, vision_layers=2, language_layers=2, heads=2
    )
    # Weights of one size: the vision tower's are so small that gradients are tiny, and the decoder's, at this
    # width, so large that rounding shows in its answers.
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(5 if "vision_tower" in name else 0.1 * 32**0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return built.eval()


@pytest.fixture(scope="session")
def pictured():
    return [sample(i) for i in range(8)]


@pytest.fixture(scope="session")
def written():
    return [sample(i, pictured=False) for i in range(8)]
