"""Large layers in tiles, sums in other places, two sets in one sum: all give the plain diagonal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efface.encoding import Encoder
from efface.models import anatomy
from efface.saliency import fisher_diagonal, layers, saliency_mask
from efface.saliency.accumulators import accumulators
from efface.saliency.fisher import fisher_contrast
from efface.saliency.mask import contrast_mask, packed_saliency_mask


def test_tiles_give_what_whole_layers_give(monkeypatch):
    """Against the definition in float64; tiles do not divide the shape."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(530, 300)
    seen, back = torch.randn(5, 7, 530, generator=generator), torch.randn(5, 7, 300, generator=generator)
    expected = torch.einsum("bto,bti->boi", back.double(), seen.double()).square().sum(0)
    for large in (1, 10**9):  # always, never
        monkeypatch.setattr(layers, "_LARGE", large)
        total = {"layer.weight": torch.zeros(300, 530), "layer.bias": torch.zeros(300)}
        layers.add_layer("layer", layer, seen, back, total, scale=0.5)
        assert torch.allclose(total["layer.weight"].double(), expected / 2, rtol=1e-5, atol=1e-5)
        bias = back.double().sum(1).square().sum(0)
        assert torch.allclose(total["layer.bias"].double(), bias / 2, rtol=1e-5)


def test_a_convolution_in_tiles_as_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 16, 4, stride=4)
    seen, back = torch.randn(3, 3, 16, 16, generator=generator), torch.randn(3, 16, 4, 4, generator=generator)
    found = []
    for large in (1, 10**9):
        monkeypatch.setattr(layers, "_LARGE", large)
        total = {"layer.weight": torch.zeros_like(layer.weight)}
        layers.add_layer("layer", layer, seen, back, total)
        found.append(total["layer.weight"])
    assert found[0].abs().max() > 0 and torch.allclose(*found, rtol=1e-5)


def test_gradients_of_a_layer_are_gone_before_the_next_layer_s(model, processor, pictured, monkeypatch):
    """What was kept of a layer's input is dropped as soon as its gradient has been used."""
    import gc
    import weakref

    kept, most = [], 0
    original = layers.add_layer

    def watched(name, layer, seen, gradient, total, scale=1.0):
        nonlocal most
        original(name, layer, seen, gradient, total, scale)
        kept.append(weakref.ref(gradient))
        del gradient, seen
        if len(kept) % 7 == 0:  # a collection takes a tenth of a second
            gc.collect()
            most = max(most, sum(ref() is not None for ref in kept[:-1]))

    monkeypatch.setattr(layers, "add_layer", watched)
    fisher_diagonal(model, Encoder(processor, pictured).batches(8), parameters=anatomy(model).maskable)
    assert len(kept) > 20 and most <= 3  # a residual stream's gradient lives on beside the layer's own


@pytest.mark.parametrize("place", ["auto", "cpu", "disk"])
def test_where_sums_are_kept_changes_nothing(model, processor, pictured, tmp_path, place):
    names = anatomy(model).maskable
    batches = list(Encoder(processor, pictured).batches(3))
    expected = fisher_diagonal(model, batches, parameters=names)
    found = fisher_diagonal(model, batches, parameters=names, place=place, folder=tmp_path / "sums")
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert not [*tmp_path.rglob("*sums-*")]


def test_an_unknown_place_lists_the_known_ones():
    with pytest.raises(ValueError, match="place is 'attic': expected one of: auto, device, cpu, disk"):
        accumulators({}, place="attic")


def test_without_room_sums_go_to_the_disk(monkeypatch, tmp_path):
    import psutil

    room = psutil.virtual_memory()._replace(available=4 * 100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    made = []
    monkeypatch.setattr("efface.saliency.accumulators._mapped", lambda *a: made.append(a) or {})
    accumulators({"w": torch.zeros(100)}, place="auto", folder=tmp_path)
    assert len(made) == 1
    assert accumulators({"w": torch.zeros(50)}, place="auto")["w"].shape == (50,)


@pytest.mark.parametrize("unit", ["sample", "batch"])
@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_two_sets_in_one_sum_give_the_same_mask(model, processor, pictured, written, threshold, unit):
    names = anatomy(model).maskable
    forget = list(Encoder(processor, pictured[:5]).batches(2))
    preserve = list(Encoder(processor, pictured[5:] + written).batches(4))
    pair = [fisher_diagonal(model, part, parameters=names, unit=unit) for part in (forget, preserve)]
    expected = saliency_mask(*pair, threshold=threshold)
    counts = (5, 11) if unit == "sample" else (3, 3)
    options = {"counts": counts, "threshold": threshold, "parameters": names, "unit": unit}
    found = contrast_mask(fisher_contrast(model, forget, preserve, **options), threshold=threshold)
    different = 0
    for name in names:
        ratio = pair[0][name].double() / (pair[1][name].double() + 1e-15)
        clear = (ratio / threshold - 1).abs() > 1e-4
        assert torch.equal(found[name][clear], expected[name][clear]), name
        different += int((found[name] != expected[name]).sum())
    assert different <= 5


def test_wrong_counts_are_told(model, processor, pictured):
    batches = list(Encoder(processor, pictured).batches(4))
    with pytest.raises(ValueError, match=r"hold \[8, 8\] samples, and `counts` says \[8, 7\]"):
        fisher_contrast(model, batches, batches, counts=(8, 7))
    with pytest.raises(ValueError, match="of 0 and 7 samples"):
        fisher_contrast(model, [], batches, counts=(0, 7))


@pytest.mark.parametrize("smooth", [False, True])
def test_edges_of_the_ratio_are_those_of_the_difference(smooth):
    forget = {"w": torch.tensor([0.0, 1e-12, 0.0, 2.0, 3.0])}
    preserve = {"w": torch.tensor([0.0, 0.0, 1e-12, 2.1, 2.9])}
    expected = saliency_mask(forget, preserve, smooth_numerator=smooth)["w"]
    contrast = {"w": forget["w"] - preserve["w"]}
    assert torch.equal(contrast_mask(contrast, smooth_numerator=smooth)["w"], expected)
    assert contrast == {}
    assert torch.equal(packed_saliency_mask(forget, preserve, smooth_numerator=smooth)["w"], expected)
    assert forget == {} == preserve


def test_a_difference_that_is_not_finite_is_refused():
    with pytest.raises(
        ValueError, match="difference of the Fisher of w has 1 of 2 values that are not finite"
    ):
        contrast_mask({"w": torch.tensor([1.0, float("nan")])})


def test_packing_names_that_differ_is_an_error():
    with pytest.raises(ValueError, match="name different parameters, first 'v'"):
        packed_saliency_mask({"w": torch.ones(1)}, {"w": torch.ones(1), "v": torch.ones(1)})
