"""Saliency masks: the ratio, its edges, and the file that holds one bit per weight."""

from __future__ import annotations

import json

import pytest
import torch

from efface.errors import ArtifactError
from efface.models import anatomy, weights_digest
from efface.saliency import load_mask, mask_density, saliency_mask, save_mask
from efface.saliency.files import read_metadata


def fishers(seed, size=(400, 250)):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.rand(size, generator=generator) + 1e-6}


def test_half_of_the_weights_when_both_sets_are_alike():
    mask = saliency_mask(fishers(0), fishers(1))
    assert mask["w"].float().mean() == pytest.approx(0.5, abs=0.02)


def test_equals_the_definition_weight_by_weight():
    forget, preserve = fishers(0, (7, 5)), fishers(1, (7, 5))
    mask = saliency_mask(forget, preserve, threshold=1.5)
    for i in range(7):
        for j in range(5):
            ratio = float(forget["w"][i, j]) / (float(preserve["w"][i, j]) + 1e-15)
            assert bool(mask["w"][i, j]) is (ratio >= 1.5)


def test_a_weight_without_gradient_in_either_set_is_not_salient():
    zero = {"w": torch.zeros(3, 3)}
    assert not saliency_mask(zero, zero)["w"].any()


def test_with_a_smooth_numerator_such_a_weight_has_ratio_one():
    zero = {"w": torch.zeros(3, 3)}
    assert saliency_mask(zero, zero, smooth_numerator=True)["w"].all()
    assert not saliency_mask(zero, zero, smooth_numerator=True, threshold=1.01)["w"].any()


def test_a_smooth_numerator_changes_no_weight_that_has_gradients():
    plain = saliency_mask(fishers(0), fishers(1))["w"]
    assert torch.equal(saliency_mask(fishers(0), fishers(1), smooth_numerator=True)["w"], plain)


def test_a_weight_only_the_forget_set_uses_is_salient():
    assert saliency_mask({"w": torch.full((2,), 1e-12)}, {"w": torch.zeros(2)})["w"].all()


def test_a_higher_threshold_keeps_a_subset():
    low = saliency_mask(fishers(0), fishers(1), threshold=1.0)["w"]
    high = saliency_mask(fishers(0), fishers(1), threshold=2.0)["w"]
    assert high.sum() < low.sum() and not (high & ~low).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"w": torch.full((400, 250), float("nan"))},
            r"forget Fisher of w has 100000 of 100000 values that are not finite",
        ),
        ({"w": torch.ones(400, 250).half()}, r"forget Fisher of w is torch.float16, expected torch.float32"),
        ({"v": torch.ones(400, 250)}, "name different parameters"),
    ],
)
def test_bad_fishers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        saliency_mask(change, fishers(1))


@pytest.mark.parametrize("threshold", [0, -1.0, float("inf"), float("nan")])
def test_threshold_must_be_positive_and_finite(threshold):
    with pytest.raises(ValueError, match=f"threshold must be above 0 and finite, got {threshold}"):
        saliency_mask(fishers(0), fishers(1), threshold=threshold)


@pytest.fixture
def made(model, tmp_path):
    generator = torch.Generator().manual_seed(3)
    parts = anatomy(model)
    shapes = {name: p.shape for name, p in model.named_parameters() if name in parts.maskable}
    mask = {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}
    path = tmp_path / "mask.safetensors"
    save_mask(mask, path, metadata={"variant": "paper", "model_digest": weights_digest(model)})
    return mask, path


def test_round_trip(model, made):
    mask, path = made
    loaded, metadata = load_mask(path, model=model)
    assert metadata["variant"] == "paper"
    assert loaded.keys() == mask.keys()
    assert all(torch.equal(loaded[name], mask[name]) for name in mask)


def test_one_bit_per_weight_and_the_documented_order(made):
    from safetensors.torch import load_file

    mask, path = made
    packed = load_file(path)
    for name, entry in mask.items():
        assert packed[name].numel() == -(-entry.numel() // 8)
        bits = [int(packed[name][i // 8]) >> (i % 8) & 1 for i in range(entry.numel())]
        assert bits == entry.reshape(-1).int().tolist()


def test_the_same_mask_gives_the_same_bytes(model, made, tmp_path):
    mask, path = made
    again = tmp_path / "again.safetensors"
    save_mask(mask, again, metadata={"model_digest": weights_digest(model), "variant": "paper"})
    assert again.read_bytes() == path.read_bytes()


def test_other_weights_are_refused(model, made):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ArtifactError, match="made from other weights"):
        load_mask(made[1], model=model)


def test_other_shapes_are_refused(model, made):
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(32, 40, bias=True)
    with pytest.raises(
        ArtifactError, match=r"linear_1.bias has shape \[32\] in the mask, \[40\] in the model"
    ):
        load_mask(made[1], model=model)


@pytest.mark.parametrize("keep", [0, 7, 200, -10])
def test_a_truncated_file_is_named_with_the_way_back(made, keep):
    path = made[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"mask.safetensors is not a whole file .*dvc checkout"):
        load_mask(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"efface": json.dumps({"kind": "neuron_importance"})})
    with pytest.raises(ArtifactError, match="holds 'neuron_importance', expected a saliency mask"):
        load_mask(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="expected safetensors with a 'efface' entry"):
        read_metadata(path)


def test_density_counts_by_group_layer_and_kind(model, made):
    mask = {name: torch.zeros_like(entry) for name, entry in made[0].items()}
    mask["model.language_model.layers.1.mlp.up_proj.weight"][:] = True
    density = mask_density(mask, anatomy(model))
    sizes = {name: entry.numel() for name, entry in mask.items()}
    up = 48 * 32
    assert density["groups"]["vision"] == 0 and density["layers"]["language.0"] == 0
    assert density["groups"]["language"] == pytest.approx(
        up / sum(n for k, n in sizes.items() if "language_model" in k)
    )
    assert density["kinds"]["up_proj"] == 0.5
    assert density["total"] == pytest.approx(up / sum(sizes.values()))
