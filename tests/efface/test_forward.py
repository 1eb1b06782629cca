"""Batches in which a sample's output differs from its own are detected and split."""

from __future__ import annotations

import logging

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import answer_log_probs, nll
from efface.encoding.forward import forward, supports_batches


def damage(model, monkeypatch, fault):
    """Let the model treat batches of several pictures wrongly."""
    features = model.model.get_image_features

    def get_image_features(pixel_values, **options):
        if len(pixel_values) > 1 and fault == "crash":
            raise IndexError("index out of range")
        if len(pixel_values) > 1 and fault == "neighbour":
            pixel_values = pixel_values.roll(1, dims=0)
        if fault == "mean":
            pixel_values = pixel_values + pixel_values.mean(dim=0, keepdim=True)
        return features(pixel_values, **options)

    monkeypatch.setattr(model.model, "get_image_features", get_image_features)


@pytest.mark.parametrize("fault", ["crash", "neighbour", "mean"])
def test_a_model_whose_batches_are_wrong_goes_sample_by_sample(
    model, processor, pictured, written, monkeypatch, caplog, fault
):
    damage(model, monkeypatch, fault)
    encoder = Encoder(processor, pictured)
    alone = torch.cat([answer_log_probs(model, encoder.batch([i])).total for i in range(4)])
    with caplog.at_level(logging.WARNING):
        for batch in encoder.batches(4):
            assert not supports_batches(model, batch)
        together = answer_log_probs(model, encoder.batch(range(4))).total
    assert torch.allclose(together, alone, rtol=1e-5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert type(model).__name__ in caplog.text
    assert supports_batches(model, Encoder(processor, written).batch([0, 1]))
    states = forward(model, encoder.batch(range(3)), output_hidden_states=True).hidden_states
    assert len(states) == 3 and len(states[0]) == 3
    nll(model, encoder.batch(range(4))).backward()
    together = model.lm_head.weight.grad.clone()
    model.zero_grad()
    for i in range(4):
        (nll(model, encoder.batch([i])) / 4).backward()
    assert torch.allclose(together, model.lm_head.weight.grad, atol=1e-6)


def test_a_model_whose_batches_are_right_keeps_them_and_its_modes(model, processor, pictured):
    batch = Encoder(processor, pictured).batch(range(8))
    calls = []
    model.register_forward_pre_hook(lambda module, args, options: calls.append(1), with_kwargs=True)
    model.train()
    model.model.vision_tower.eval()
    assert supports_batches(model, batch)
    assert model.training and not model.model.vision_tower.training
    assert len(calls) == 3  # two samples and both together, once
    before = forward(model, batch).logits
    assert len(calls) == 4
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pixels", [torch.float32, torch.bfloat16])
def test_pixels_have_the_precision_of_the_weights(model, processor, pictured, weights, pixels):
    tower = model.to(weights).model.vision_tower
    dtypes = []
    tower.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    batch = Encoder(processor, pictured).batch([0])
    batch["pixel_values"] = batch["pixel_values"].to(pixels)
    assert forward(model, batch).logits.dtype == weights
    assert dtypes == [weights]
