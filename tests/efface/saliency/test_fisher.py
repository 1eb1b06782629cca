"""Fisher diagonal: parity with one-sample automatic differentiation, and what must be left untouched."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder, encode
from efface.encoding.answers import nll
from efface.models import anatomy
from efface.saliency import fisher_diagonal


def slow_fisher(model, processor, samples, names):
    """The definition, written out: square each sample's own gradient, then average, in float64."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for row in encode(processor, samples):
        gradients = torch.autograd.grad(nll(model, row), parameters, allow_unused=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_ += gradient.double() ** 2
    return {name: sum_ / len(samples) for name, sum_ in zip(names, total, strict=True)}


def assert_close(found, expected, relative):
    for name, value in expected.items():
        scale = value.abs().max()
        assert (found[name].double() - value).abs().max() <= relative * scale, name


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("kind", ["pictured", "written", "both"])
def test_equals_a_loop_over_single_samples(model, processor, pictured, written, kind, batch_size):
    samples = {"pictured": pictured, "written": written, "both": pictured + written}[kind]
    names = anatomy(model).maskable
    found = fisher_diagonal(model, Encoder(processor, samples).batches(batch_size), parameters=names)
    assert_close(found, slow_fisher(model, processor, samples, names), 1e-5)


def test_parameters_outside_linear_layers_are_measured_too(model, processor, pictured):
    names = ["model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight"]
    found = fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=names)
    assert_close(found, slow_fisher(model, processor, pictured, names), 1e-5)


def test_batch_unit_squares_the_mean_gradient(model, processor, pictured):
    names = ["model.multi_modal_projector.linear_1.weight"]
    batches = list(Encoder(processor, pictured).batches(4))
    found = fisher_diagonal(model, batches, parameters=names, unit="batch")
    weight = model.model.multi_modal_projector.linear_1.weight
    expected = sum(torch.autograd.grad(nll(model, batch), weight)[0].double() ** 2 for batch in batches) / 2
    assert_close(found, {names[0]: expected}, 1e-5)
    per_sample = fisher_diagonal(model, batches, parameters=names)[names[0]]
    assert per_sample.sum() > 1.5 * found[names[0]].sum()


def test_vision_weights_have_no_gradient_from_text(model, processor, written):
    names = [name for name in anatomy(model).maskable if "vision_tower" in name]
    found = fisher_diagonal(model, Encoder(processor, written).batches(4), parameters=names)
    assert all(not value.any() for value in found.values())


def test_half_precision_weights_give_float32_squares(model, processor, pictured):
    names = anatomy(model).maskable
    expected = fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=names)
    # bfloat16 pictures go in as the model's own dtype: cast what the processor returns.
    batches = [
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
        for batch in Encoder(processor, pictured).batches(4)
    ]
    found = fisher_diagonal(model.bfloat16(), batches, parameters=names)
    assert {value.dtype for value in found.values()} == {torch.float32}
    name = "model.multi_modal_projector.linear_2.weight"
    assert found[name].mean() == pytest.approx(float(expected[name].mean()), rel=0.1)


def count_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def warm_hooks(model, processor, samples):
    """Number of hooks after a first forward pass: transformers installs some of its own then."""
    nll(model, encode(processor, samples[:1])[0])
    return count_hooks(model)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(model, processor, pictured, training):
    hooks = warm_hooks(model, processor, pictured)
    model.train(training)
    flagged = next(iter(model.parameters())).requires_grad_(False)
    kept = model.lm_head.weight
    kept.grad = torch.ones_like(kept)
    fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=anatomy(model).maskable)
    assert model.training is training
    assert not flagged.requires_grad and kept.requires_grad
    assert torch.equal(kept.grad, torch.ones_like(kept)) and flagged.grad is None
    assert count_hooks(model) == hooks
    assert sum(p.grad is not None for p in model.parameters()) == 1


def test_leaves_no_hook_behind_after_an_error(model, processor, pictured):
    hooks = warm_hooks(model, processor, pictured)
    broken = next(iter(Encoder(processor, pictured).batches(4)))
    broken["labels"][0] = -100
    with pytest.raises(ValueError, match=r"rows \[0\] of the batch have no labelled token"):
        fisher_diagonal(model, [broken], parameters=anatomy(model).maskable)
    assert count_hooks(model) == hooks
    assert all(p.requires_grad for p in model.parameters())


def test_no_samples_is_an_error(model):
    with pytest.raises(ValueError, match="no samples"):
        fisher_diagonal(model, [])


def test_unknown_parameter_is_an_error(model, processor, pictured):
    with pytest.raises(ValueError, match="'nose.weight' is not a parameter of LlavaForConditionalGeneration"):
        fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=["nose.weight"])
