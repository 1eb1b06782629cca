"""Saliency masks: the ratio and its edges, a share instead of a threshold, and agreement of two masks."""

from __future__ import annotations

import pytest
import torch

from efface.saliency import mask as module
from efface.saliency import saliency_mask
from efface.saliency.mask import kappa, ratio_threshold


def fishers(seed, size=(400, 250)):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.rand(size, generator=generator) + 1e-6}


def test_half_of_the_weights_when_both_sets_are_alike():
    mask = saliency_mask(fishers(0), fishers(1))
    assert mask["w"].float().mean() == pytest.approx(0.5, abs=0.02)


def test_equals_the_definition_weight_by_weight():
    forget, preserve = fishers(0, (7, 5)), fishers(1, (7, 5))
    mask = saliency_mask(forget, preserve, threshold=1.5)["w"]
    for i in range(7):
        for j in range(5):
            ratio = float(forget["w"][i, j]) / (float(preserve["w"][i, j]) + 1e-15)
            assert bool(mask[i, j]) is (ratio >= 1.5)


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


def test_a_higher_threshold_selects_a_subset():
    low = saliency_mask(fishers(0), fishers(1), threshold=1.0)["w"]
    high = saliency_mask(fishers(0), fishers(1), threshold=2.0)["w"]
    assert high.sum() < low.sum() and not (high & ~low).any()


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_a_density_selects_the_highest_ratios_of_all_weights_together(density):
    forget = fishers(0) | {"v": 100 * fishers(2, (30, 7))["w"]}
    preserve = fishers(1) | {"v": fishers(3, (30, 7))["w"]}
    masks = saliency_mask(forget, preserve, density=density)
    ratios = torch.cat([(forget[n] / (preserve[n] + 1e-15)).flatten() for n in ("w", "v")])
    selected = torch.cat([masks[n].flatten() for n in ("w", "v")])
    assert int(selected.sum()) == round(density * len(ratios))
    assert ratios[selected].min() >= ratios[~selected].max()
    threshold = ratio_threshold(forget, preserve, density=density)
    assert torch.equal(saliency_mask(forget, preserve, threshold=threshold)["w"], masks["w"])


def test_a_density_is_estimated_where_there_are_many_weights(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_SIZE", 10_000)
    mask = saliency_mask(fishers(0), fishers(1), density=0.3)["w"]
    assert mask.float().mean() == pytest.approx(0.3, abs=0.02)


def test_a_density_never_selects_weights_without_a_forget_gradient():
    forget = {"w": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    assert saliency_mask(forget, {"w": torch.ones(4)}, density=0.75)["w"].tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("density", [0, 1, -0.1, 1.5])
def test_density_out_of_range(density):
    with pytest.raises(ValueError) as error:
        saliency_mask(fishers(0), fishers(1), density=density)
    assert "density" in str(error.value) and str(density) in str(error.value)


@pytest.mark.parametrize(
    ("forget", "parts"),
    [
        ({"w": torch.full((400, 250), float("nan"))}, ["forget Fisher of w", "100000 of 100000"]),
        ({"w": torch.ones(400, 250).half()}, ["forget Fisher of w", "torch.float16"]),
        ({"w": torch.ones(400, 249)}, ["preserve Fisher of w", "(400, 250)", "(400, 249)"]),
        ({"v": torch.ones(400, 250)}, ["'v'"]),
    ],
)
def test_bad_fishers_are_refused(forget, parts):
    with pytest.raises(ValueError) as error:
        saliency_mask(forget, fishers(1))
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("threshold", [0, -1.0, float("inf"), float("nan")])
def test_threshold_must_be_positive_and_finite(threshold):
    with pytest.raises(ValueError) as error:
        saliency_mask(fishers(0), fishers(1), threshold=threshold)
    assert "threshold" in str(error.value) and str(threshold) in str(error.value)


def bools(*values):
    return {"w": torch.tensor(values, dtype=torch.bool)}


def test_kappa_by_hand():
    a, b = bools(1, 1, 0, 0, 1, 0), bools(1, 0, 0, 0, 1, 1)
    # They agree on 4 of 6; by chance on 1/2 * 1/2 + 1/2 * 1/2.
    assert kappa(a, b) == pytest.approx((4 / 6 - 0.5) / 0.5)
    assert kappa(a, a) == 1 and kappa(a, {"w": ~a["w"]}) == -1
    assert kappa(bools(1, 1), bools(1, 1)) is None


def test_kappa_of_independent_masks_is_zero():
    a, b = ({"w": fishers(seed)["w"] < 0.3} for seed in (0, 1))
    assert kappa(a, b) == pytest.approx(0, abs=0.02)
