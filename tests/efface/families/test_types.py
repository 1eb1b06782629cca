"""Families whose processor or model differs from all tested ones, with their own processor, built tiny."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from efface.data.samples import Sample
from efface.encoding import Encoder
from efface.encoding.answers import answer_log_probs
from efface.errors import ModelError
from efface.models import anatomy
from efface.models.processors import check_processor
from tests.models.generic import fit_processor, tiny_config, tiny_model, tiny_processor

pytest.importorskip("torchvision")


def build(kind):
    config = tiny_config(kind)
    processor = tiny_processor(config)
    model = tiny_model(config)
    fit_processor(model, processor)
    return model, processor


def sample(number):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (90 * number, 200, 30)).save(picture, format="PNG")
    row = {"sample_id": str(number), "entity_id": f"fictitious/{number}", "split": "forget", "part": "train"}
    row |= {"modality": "multimodal", "task": "qa", "image": picture.getvalue()}
    row |= {"question": "Which colour does this person like?", "answer": "red and green"}
    return Sample.from_row(row)


@pytest.mark.parametrize(
    "kind",
    [
        "aya_vision",  # stores patch size times downsampling
        "git",  # gives logits for pictures without tokens
        "idefics",  # puts pictures that are given apart behind the text
        "got_ocr2",  # takes a list of pictures for pages
        pytest.param("llama4", marks=pytest.mark.slow),  # writes another token than it is given, in bfloat16
        pytest.param("chameleon", marks=pytest.mark.slow),  # writes a token behind the text by default
        pytest.param("cosmos3_edge", marks=pytest.mark.slow),  # leaves token types out by default
    ],
)
def test_answers_are_labelled_and_a_batch_gives_what_its_samples_give(kind):
    model, processor = build(kind)
    check_processor(model, processor)
    encoder = Encoder(processor, [sample(0), sample(1)])
    batch = encoder.batch([0, 1])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]).split() == ["red", "and", "green", "</s>"]
    with torch.no_grad():
        together = answer_log_probs(model, batch)
        alone = [answer_log_probs(model, encoder.batch([i])).total for i in range(2)]
    assert together.tokens.tolist() == [4, 4]
    assert torch.allclose(together.total, torch.cat(alone), rtol=1e-4)
    assert all(-60 < value < -4 * math.log(2) for value in together.total.tolist())


@pytest.mark.parametrize("kind", ["aya_vision", "llama4"])
def test_a_processor_with_another_patch_size_or_picture_token_is_refused(kind):
    model, processor = build(kind)
    processor.patch_size += 1
    with pytest.raises(ModelError):
        check_processor(model, processor)
    processor.patch_size -= 1
    name = "image_token_id" if hasattr(model.config, "image_token_id") else "image_token_index"
    setattr(model.config, name, 500)
    with pytest.raises(ModelError):
        check_processor(model, processor)


def test_linear_layers_that_a_family_wraps_are_neurons_of_their_block():
    """Gemma 4 clips what goes in and out of the linear layers of its vision tower."""
    model = tiny_model(tiny_config("gemma4"))
    blocks = [mlp for mlp in anatomy(model).mlps if mlp.tower == "vision"]
    assert blocks and all(mlp.down.endswith("down_proj.linear") and len(mlp.up) == 2 for mlp in blocks)
