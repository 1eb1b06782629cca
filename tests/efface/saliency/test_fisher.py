"""Fisher diagonal: parity with one-sample automatic differentiation, and what must be left untouched."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder, encode
from efface.encoding.answers import nll
from efface.models import anatomy
from efface.saliency import fisher as fisher_module
from efface.saliency import fisher_diagonal
from efface.saliency.fisher import SquaredGradients
from tests.efface.conftest import picture, sample


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


def assert_close(fisher, expected, relative):
    """Within a share of each tensor's largest entry. A key's bias has no gradient, as softmax ignores it:
    what is there is rounding, which differs between processors, so it is held to the largest entry of all."""
    whole = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        scale = whole if name.endswith("k_proj.bias") else value.abs().max()
        assert (fisher[name].double() - value).abs().max() <= relative * scale, name


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("kind", ["pictured", "written", "both"])
def test_equals_a_loop_over_single_samples(model, processor, pictured, written, kind, batch_size):
    samples = {"pictured": pictured, "written": written, "both": pictured + written}[kind]
    names = anatomy(model).maskable
    fisher = fisher_diagonal(model, Encoder(processor, samples).batches(batch_size), parameters=names)
    assert_close(fisher, slow_fisher(model, processor, samples, names), 1e-5)


def test_parameters_outside_linear_layers_are_measured_too(model, processor, pictured):
    names = ["model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight"]
    fisher = fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=names)
    assert_close(fisher, slow_fisher(model, processor, pictured, names), 1e-5)


def test_batch_unit_squares_the_mean_gradient(model, processor, pictured):
    names = ["model.multi_modal_projector.linear_1.weight"]
    batches = list(Encoder(processor, pictured).batches(4))
    fisher = fisher_diagonal(model, batches, parameters=names, unit="batch")
    weight = model.model.multi_modal_projector.linear_1.weight
    expected = sum(torch.autograd.grad(nll(model, batch), weight)[0].double() ** 2 for batch in batches) / 2
    assert_close(fisher, {names[0]: expected}, 1e-5)
    per_sample = fisher_diagonal(model, batches, parameters=names)[names[0]]
    assert per_sample.sum() > 1.5 * fisher[names[0]].sum()


def test_vision_weights_have_no_gradient_from_text(model, processor, written):
    names = [name for name in anatomy(model).maskable if "vision_tower" in name]
    fisher = fisher_diagonal(model, Encoder(processor, written).batches(4), parameters=names)
    assert all(not value.any() for value in fisher.values())


def test_half_precision_weights_give_float32_squares(model, processor, pictured):
    names = anatomy(model).maskable
    expected = fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=names)
    # bfloat16 pictures go in as the model's own dtype: cast what the processor returns.
    batches = [
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
        for batch in Encoder(processor, pictured).batches(4)
    ]
    fisher = fisher_diagonal(model.bfloat16(), batches, parameters=names)
    assert {value.dtype for value in fisher.values()} == {torch.float32}
    name = "model.multi_modal_projector.linear_2.weight"
    assert fisher[name].mean() == pytest.approx(float(expected[name].mean()), rel=0.1)


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
    head = model.lm_head.weight
    head.grad = torch.ones_like(head)
    fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=anatomy(model).maskable)
    assert model.training is training
    assert not flagged.requires_grad and head.requires_grad
    assert torch.equal(head.grad, torch.ones_like(head)) and flagged.grad is None
    assert count_hooks(model) == hooks
    assert sum(p.grad is not None for p in model.parameters()) == 1


def test_leaves_no_hook_behind_after_an_error(model, processor, pictured):
    hooks = warm_hooks(model, processor, pictured)
    broken = next(iter(Encoder(processor, pictured).batches(4)))
    broken["labels"][0] = -100
    with pytest.raises(ValueError) as error:
        fisher_diagonal(model, [broken], parameters=anatomy(model).maskable)
    assert "[0]" in str(error.value)
    assert count_hooks(model) == hooks
    assert all(p.requires_grad for p in model.parameters())


def test_no_samples_is_an_error(model):
    with pytest.raises(ValueError) as error:
        fisher_diagonal(model, [])
    assert "batches" in str(error.value)


def test_unknown_parameter_is_an_error(model, processor, pictured):
    with pytest.raises(ValueError) as error:
        fisher_diagonal(model, Encoder(processor, pictured).batches(4), parameters=["nose.weight"])
    assert "'nose.weight'" in str(error.value)


def test_storage_changes_nothing(model, processor, pictured):
    names = anatomy(model).maskable
    batches = list(Encoder(processor, pictured).batches(3))
    expected = fisher_diagonal(model, batches, parameters=names)
    fisher = fisher_diagonal(model, batches, parameters=names, storage="cpu")
    assert all(torch.equal(fisher[name], expected[name]) for name in names)
    with pytest.raises(ValueError) as error:
        fisher_diagonal(model, batches, storage="disk")
    assert "storage" in str(error.value) and "'disk'" in str(error.value)


@pytest.mark.parametrize("size", [10**9, 5000])
def test_sums_so_far_are_those_of_the_batches_so_far(model, processor, pictured, monkeypatch, size):
    monkeypatch.setattr(fisher_module, "SAMPLE_SIZE", size)
    names = anatomy(model).maskable
    batches = list(Encoder(processor, pictured).batches(3))
    squares = SquaredGradients(model, parameters=names)
    squares.add(batches[:2])
    sums, count = squares.sample()
    weights = sum(model.get_parameter(name).numel() for name in names)
    assert count == 6 and sum(v.numel() for v in sums.values()) <= min(weights, 1.1 * size)
    step = max(1, weights // size) | 1
    for name, mean in fisher_diagonal(model, batches[:2], parameters=names).items():
        assert torch.allclose(sums[name] / 6, mean.view(-1)[::step]), name


def loop(model, batches, names):
    """The definition on batches of single samples, in float64."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for batch in batches:
        for sum_, gradient in zip(
            total, torch.autograd.grad(nll(model, batch), parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                sum_ += gradient.double() ** 2
    return {name: sum_ / len(batches) for name, sum_ in zip(names, total, strict=True)}


def share_weight(model):
    """Two linear layers of the decoder with one weight."""
    first, second = (layer.mlp for layer in model.model.language_model.layers)
    second.up_proj.weight = first.up_proj.weight
    return ["model.language_model.layers.0.mlp.up_proj.weight"]


class Functional(torch.nn.Module):
    """A linear layer that is never called: its weight is used directly."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return torch.nn.functional.linear(x, self.linear.weight, self.linear.bias)


def use_functional(model):
    mlp = model.model.language_model.layers[1].mlp
    mlp.up_proj = Functional(mlp.up_proj)
    return ["model.language_model.layers.1.mlp.up_proj.linear.weight"]


@pytest.mark.parametrize("change", [share_weight, use_functional])
@pytest.mark.parametrize("kind", ["pictured", "both"])
def test_weights_that_no_layer_owns_alone_are_measured_sample_by_sample(
    model, processor, pictured, written, change, kind, caplog
):
    samples = pictured if kind == "pictured" else pictured + written
    names = [*change(model), "model.language_model.layers.0.mlp.down_proj.weight"]
    fisher = fisher_diagonal(model, Encoder(processor, samples).batches(4), parameters=names)
    assert_close(fisher, loop(model, encode(processor, samples), names), 1e-5)
    (record,) = caplog.records
    assert names[0] in record.getMessage()


def test_a_difference_that_only_pictures_show_is_undone(model, processor, pictured, written, caplog):
    """Text first: its batches were added at once before the first batch with pictures disagrees."""
    tower = model.model.vision_tower
    name, linear = next((n, m) for n, m in tower.named_modules() if n.endswith("fc1"))
    parent = tower.get_submodule(name.rpartition(".")[0])
    parent.fc1 = Functional(linear)
    names = [f"model.vision_tower.{name}.linear.weight", "model.language_model.layers.0.mlp.up_proj.weight"]
    encoder = Encoder(processor, written + pictured)
    batches = [encoder.batch(range(i, i + 4)) for i in (0, 4, 8, 12)]
    fisher = fisher_diagonal(model, batches, parameters=names)
    assert_close(fisher, loop(model, encode(processor, written + pictured), names), 1e-5)
    assert len(caplog.records) == 1


def test_plain_models_are_measured_at_once(model, processor, pictured, written, caplog, monkeypatch):
    calls = []
    original = SquaredGradients._gradients
    monkeypatch.setattr(
        SquaredGradients, "_gradients", lambda self, *a: calls.append(1) or original(self, *a)
    )
    encoder = Encoder(processor, pictured + written)
    fisher_diagonal(model, encoder.batches(2), parameters=anatomy(model).maskable)
    assert len(calls) == 2 and not caplog.records  # the first batch of each kind alone


@pytest.mark.parametrize("joined", [True, False])
def test_pictures_of_two_and_none_are_told_apart(model, processor, joined):
    """Two samples, two rows of pictures, and both belong to the first."""
    from dataclasses import replace

    samples = [sample(0), sample(1, pictured=False)]
    two = replace(samples[0], more_image_bytes=(picture(5),))
    rows = encode(processor, [two, samples[1]])
    names = [name for name in anatomy(model).maskable if "vision_tower" in name or "projector" in name]
    batch = Encoder(processor, [two, samples[1]]).batch([0, 1])
    assert len(batch["pixel_values"]) == 2
    if not joined:
        batch = dict(batch)
    fisher = fisher_diagonal(model, [batch], parameters=names)
    assert_close(fisher, loop(model, rows, names), 1e-5)
