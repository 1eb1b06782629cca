"""Saliency masks: the ratio and its edges."""

from __future__ import annotations

import pytest
import torch

from efface.saliency import saliency_mask


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
