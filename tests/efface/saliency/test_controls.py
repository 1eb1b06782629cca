"""Control masks: as many weights per tensor as the mask they are compared with."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.models import anatomy
from efface.saliency import mean_gradient
from efface.saliency.controls import magnitude_mask, random_mask


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    return {
        "some": torch.rand(40, 30, generator=generator) < 0.3,
        "none": torch.zeros(7, dtype=torch.bool),
        "all": torch.ones(5, 2, dtype=torch.bool),
    }


def gradients(mask, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(entry.shape, generator=generator) for name, entry in mask.items()}


def counts(mask):
    return {name: (entry.shape, entry.dtype, int(entry.sum())) for name, entry in mask.items()}


def test_equal_counts_per_tensor(mask):
    assert counts(random_mask(mask, seed=0)) == counts(mask)
    assert counts(magnitude_mask(mask, gradients(mask))) == counts(mask)


def test_random_depends_on_the_seed_and_not_on_the_mask(mask):
    a, b, c = (random_mask(mask, seed=seed)["some"] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    chance = float(mask["some"].float().mean())
    assert float((a & mask["some"]).sum() / mask["some"].sum()) == pytest.approx(chance, abs=0.08)


def test_magnitude_takes_the_largest_absolute_gradients(mask):
    gradient = gradients(mask)
    control = magnitude_mask(mask, gradient)["some"]
    size = gradient["some"].abs()
    assert size[control].min() >= size[~control].max()
    assert (gradient["some"][control] < 0).any()


def test_equal_gradients_are_broken_by_position():
    mask = {"w": torch.tensor([[False, True], [True, False]])}
    assert magnitude_mask(mask, {"w": torch.zeros(2, 2)})["w"].tolist() == [[True, True], [False, False]]


def test_a_tensor_that_is_true_everywhere_needs_no_gradient(mask):
    gradient = gradients(mask)
    del gradient["all"]
    assert magnitude_mask(mask, gradient)["all"].all()


def test_a_missing_or_misshapen_gradient_is_an_error(mask):
    gradient = gradients(mask)
    gradient["some"] = gradient["some"][:2]
    with pytest.raises(ValueError) as error:
        magnitude_mask(mask, gradient)
    assert all(part in str(error.value) for part in ("some", "(2, 30)", "(40, 30)"))
    with pytest.raises(ValueError) as error:
        magnitude_mask(mask, {})
    assert "some" in str(error.value) and "missing" in str(error.value)


def test_mean_gradient_is_that_of_the_mean_loss(model, processor, pictured, written):
    samples = pictured + written[:3]
    names = anatomy(model).maskable
    gradient = mean_gradient(model, Encoder(processor, samples).batches(3), parameters=names)
    for batch_size in (8, 3):
        weights = [model.get_parameter(name) for name in names]
        batches = list(Encoder(processor, samples).batches(batch_size))
        loss = sum(nll(model, batch) * len(batch["input_ids"]) for batch in batches) / len(samples)
        for name, expected in zip(names, torch.autograd.grad(loss, weights), strict=True):
            assert torch.allclose(gradient[name], expected, rtol=1e-4, atol=1e-6), name
    assert all(p.grad is None for p in model.parameters())


def test_mean_gradient_of_no_samples_is_an_error(model):
    with pytest.raises(ValueError) as error:
        mean_gradient(model, [])
    assert "batches" in str(error.value)
