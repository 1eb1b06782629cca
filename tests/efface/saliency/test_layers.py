"""Per-sample gradients of single layers, whole and in tiles."""

from __future__ import annotations

import torch
from torch import nn

from efface.encoding import Encoder
from efface.models import anatomy
from efface.saliency import fisher_diagonal, layers


def test_tiles_give_what_whole_layers_give(monkeypatch):
    """Against the definition in float64; tiles do not divide the shape."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(530, 300)
    inputs, gradient = (
        torch.randn(5, 7, 530, generator=generator),
        torch.randn(5, 7, 300, generator=generator),
    )
    expected = torch.einsum("bto,bti->boi", gradient.double(), inputs.double()).square().sum(0)
    for large in (1, 10**9):  # always, never
        monkeypatch.setattr(layers, "_LARGE", large)
        total = {"layer.weight": torch.zeros(300, 530), "layer.bias": torch.zeros(300)}
        layers.add_layer("layer", layer, inputs, gradient, total, scale=0.5)
        assert torch.allclose(total["layer.weight"].double(), expected / 2, rtol=1e-5, atol=1e-5)
        bias = gradient.double().sum(1).square().sum(0)
        assert torch.allclose(total["layer.bias"].double(), bias / 2, rtol=1e-5)


def test_a_convolution_in_tiles_as_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 16, 4, stride=4)
    inputs = torch.randn(3, 3, 16, 16, generator=generator)
    gradient = torch.randn(3, 16, 4, 4, generator=generator)
    totals = []
    for large in (1, 10**9):
        monkeypatch.setattr(layers, "_LARGE", large)
        total = {"layer.weight": torch.zeros_like(layer.weight)}
        layers.add_layer("layer", layer, inputs, gradient, total)
        totals.append(total["layer.weight"])
    assert totals[0].abs().max() > 0 and torch.allclose(*totals, rtol=1e-5)


def test_gradients_of_a_layer_are_gone_before_the_next_layer_s(model, processor, pictured, monkeypatch):
    """The recorded input of a layer is dropped as soon as its gradient has been used."""
    import gc
    import weakref

    references, most = [], 0
    original = layers.add_layer

    def add_and_count(name, layer, inputs, gradient, total, scale=1.0):
        nonlocal most
        original(name, layer, inputs, gradient, total, scale)
        references.append(weakref.ref(gradient))
        del gradient, inputs
        if len(references) % 7 == 0:  # a collection takes a tenth of a second
            gc.collect()
            most = max(most, sum(ref() is not None for ref in references[:-1]))

    monkeypatch.setattr(layers, "add_layer", add_and_count)
    fisher_diagonal(model, Encoder(processor, pictured).batches(8), parameters=anatomy(model).maskable)
    assert len(references) > 20 and most <= 3  # a residual stream's gradient lives on beside the layer's own
