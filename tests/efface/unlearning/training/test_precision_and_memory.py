"""Accumulation, mixed precision, activation checkpointing, pruned starts: what they change and what not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from efface.encoding import Encoder
from efface.errors import ArtifactError, ModelError
from efface.models import anatomy
from efface.models.lora import Lora, add_lora
from efface.neurons import zero_neurons
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.finetuning import finetune
from efface.unlearning.method import Batch, Term
from efface.unlearning.training.batch_source import EpochSampler
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import DivergenceError
from efface.unlearning.training.loop import Terms, check_precision
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import fit, options, weights

STEPS, SEED = 4, 3


@pytest.fixture
def run(processor, pictured, written):
    """Unlearns with a method, by default gradient difference."""

    def start(
        model, method="grad_diff", *, forget=None, retain=None, adapter=None, checkpoints=None, **values
    ):
        values = {"seed": SEED} | ({} if "epochs" in values else {"steps": STEPS}) | values
        return unlearn(
            model,
            processor,
            method=method,
            forget=forget or pictured[:4],
            retain=retain or pictured[4:] + written[4:],
            adapter=adapter,
            checkpoints=checkpoints,
            **options(method, **values),
        )

    return start


def distance(a, b):
    return max(float((p - b[name]).abs().max()) for name, p in a.items() if "k_proj" not in name)


def test_accumulated_batches_make_one_step_of_their_mean(model, run, processor, pictured, written):
    """Against gradients taken batch by batch: two forget batches, with two retain batches each."""
    gradients = []
    original = torch.optim.AdamW.step

    def recording(self, *args, **kwargs):
        gradients.extend(None if p.grad is None else p.grad.clone() for p in self.param_groups[0]["params"])
        return original(self, *args, **kwargs)

    start = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", recording)
        result = run(
            model, steps=1, accumulation_steps=2, retain_batches_per_forget_batch=2, max_grad_norm=None
        )
    parameters = list(start.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    sets = {"forget": (pictured[:4], 3, 2), "retain": (pictured[4:] + written[4:], 4, 4)}
    for name, (samples, seed, batches) in sets.items():
        encoder, sampler = Encoder(processor, samples), EpochSampler(samples, batch_size=2, seed=seed)
        loss, nlls = getattr(METHODS["grad_diff"], f"{name}_loss"), []
        for position in range(batches):
            term = loss(start, Batch(encoder.batch(sampler.indices_at(position))), None)
            nlls.append(term.nll.mean().item())
            parts = torch.autograd.grad(term.loss / batches, parameters, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, parts, strict=True)]
        assert result.history[0][f"{name}_loss"] == pytest.approx(sum(nlls) / len(nlls), rel=1e-5)
    for gradient, expected in zip(gradients, total, strict=True):
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 6), (2, 3), (4, 2), (5, 2)])
def test_an_epoch_uses_every_sample_once_whatever_is_accumulated(
    model, run, pictured, written, monkeypatch, accumulation, steps
):
    batches = []
    original = EpochSampler.indices_at

    def recording(self, position):
        indices = original(self, position)
        if self.seed == SEED:
            batches.append(tuple(indices))
        return indices

    monkeypatch.setattr(EpochSampler, "indices_at", recording)
    samples = {"forget": pictured[:6] + written[:5], "retain": pictured + written}
    result = run(model, **samples, epochs=1, accumulation_steps=accumulation)
    assert result.steps == steps
    assert sorted(i for batch in batches for i in batch) == list(range(11))


def test_recomputed_activations_give_the_same_weights(model, run):
    checkpointed = copy.deepcopy(model)
    run(model)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += torch.is_grad_enabled()  # without: a first batch is compared with its samples

    handle = checkpointed.model.language_model.layers[0].mlp.register_forward_pre_hook(count)
    run(checkpointed, gradient_checkpointing=True)
    handle.remove()
    assert calls == 2 * 2 * STEPS  # each of two terms forward, and again in the backward pass
    assert distance(weights(model), weights(checkpointed)) < 1e-6
    assert not any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())


@pytest.mark.parametrize(("method", "settings"), [("rmu", {"layer": 1, "scale": 1.0}), ("kl_min", {})])
def test_recomputed_activations_suit_every_kind_of_loss(model, run, method, settings):
    checkpointed = copy.deepcopy(model)
    run(model, method, **settings)
    run(checkpointed, method, gradient_checkpointing=True, **settings)
    assert distance(weights(model), weights(checkpointed)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_weights_in_float32_and_comes_close(model, run, precision):
    half, start = copy.deepcopy(model), weights(model)
    exact = run(model)
    mixed = run(half, precision=precision)
    assert all(p.dtype == torch.float32 for p in half.parameters())
    # Half precision has two to three digits.
    assert mixed.history[0]["forget_loss"] == pytest.approx(exact.history[0]["forget_loss"], rel=0.03)
    assert mixed.history[0]["forget_loss"] != exact.history[0]["forget_loss"]
    steps = [record for record in mixed.history if "skipped" not in record]
    assert steps and steps[-1]["forget_grad_norm"] == pytest.approx(
        exact.history[-1]["forget_grad_norm"], rel=0.3
    )
    assert distance(start, weights(half)) > 1e-4


def test_fine_tuning_computes_in_its_precision(model, processor, pictured):
    def tuned(**settings):
        copied = copy.deepcopy(model)
        result = finetune(
            copied, processor, pictured, steps=2, learning_rate=1e-3, batch_size=4, seed=0, **settings
        )
        return copied, [record["retain_loss"] for record in result.history]

    whole, exact = tuned()
    checkpointed, recomputed = tuned(gradient_checkpointing=True)
    half, mixed = tuned(precision="bf16")
    assert recomputed == pytest.approx(exact, rel=1e-5)
    assert distance(weights(whole), weights(checkpointed)) < 1e-4
    assert mixed != exact and mixed == pytest.approx(exact, rel=0.03)
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_float16_scales_losses_up_and_gradients_back_without_changing_a_digit(model, run, monkeypatch):
    """With a scale of one and of 2**16 the steps are the same, since no gradient here underflows."""
    unscaled, method = copy.deepcopy(model), METHODS["grad_diff"]

    def single(*args):  # in float32, so that the scale is all that float16 changes
        with torch.autocast("cpu", enabled=False):
            return method.forget_loss(*args)

    exact = dataclasses.replace(method, forget_loss=single, retain_loss=None)
    run(model, exact, precision="fp16")
    run(unscaled, exact)
    assert distance(weights(model), weights(unscaled)) == 0


def test_a_gradient_that_overflows_float16_is_left_out_and_the_scale_goes_down(model, run):
    """The term is far too large for two steps."""
    method, calls = METHODS["grad_diff"], 0

    def huge(*args):
        nonlocal calls
        calls += 1
        term = method.forget_loss(*args)
        return Term(loss=term.loss * (1e30 if calls < 3 else 1.0), nll=term.nll)

    start = weights(model)
    result = run(model, dataclasses.replace(method, forget_loss=huge), precision="fp16", steps=2)
    steps = [("skipped" in r, "forget_grad_norm" in r) for r in result.history]
    assert steps == [(True, False), (True, False)]
    assert distance(start, weights(model)) == 0


def test_a_loss_that_is_not_finite_is_divergence_in_float16_as_well(model, run):
    method = METHODS["grad_diff"]

    def broken(*args):
        term = method.forget_loss(*args)
        return Term(loss=term.loss * float("inf"), nll=term.nll)

    start = weights(model)
    with pytest.raises(DivergenceError) as error:
        run(model, dataclasses.replace(method, forget_loss=broken), precision="fp16")
    assert "forget_loss" in str(error.value) and "step 0 of 4" in str(error.value)
    assert distance(start, weights(model)) == 0  # ended before anything reached the weights


def test_weights_in_half_are_refused_for_mixed_precision(model, run):
    with pytest.raises(ModelError) as error:
        run(model.bfloat16(), precision="bf16")
    assert "precision is 'bf16'" in str(error.value) and "torch.bfloat16" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("accumulation_steps", 0),
        ("checkpoint_every", 0),
        ("precision", "fp8"),
        ("stop_forget_loss", 0.0),
        ("stop_retain_rise", -1.0),
    ],
)
def test_a_configuration_out_of_range_is_an_error_that_names_key_and_value(key, value):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{key: value})
    assert f"{key} is {value!r}" in str(error.value)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_resume_with_dropout_factors_and_a_gradient_scale_is_exact(
    model, run, tmp_path, monkeypatch, precision
):
    models = [copy.deepcopy(model) for _ in range(3)]
    adapters = [add_lora(m, Lora(4, 8.0, 0.3, ("language", "vision")), seed=0) for m in models]
    values = {"steps": 9, "checkpoint_every": 2, "precision": precision}
    monkeypatch.setattr(  # a scale that moves while the run lasts
        torch.amp.GradScaler, "get_growth_interval", lambda self: 2
    )
    expected = run(models[0], adapter=adapters[0], **values)
    saved, original = 0, Checkpoints.save

    def dying(self, *args):
        nonlocal saved
        saved += 1
        if saved == 3:
            raise KilledError
        original(self, *args)

    checkpoints = Checkpoints(tmp_path / "run", key="k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", dying)
        with pytest.raises(KilledError):
            run(models[1], adapter=adapters[1], checkpoints=checkpoints, **values)
    resumed = run(models[2], adapter=adapters[2], checkpoints=checkpoints, **values)
    assert resumed.history == expected.history and len(expected.history) == 9
    for name, p in models[0].named_parameters():
        assert torch.equal(p, models[2].get_parameter(name)), name


def test_a_checkpoint_of_other_weights_is_refused(model, run, tmp_path):
    with_factors = copy.deepcopy(model)
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    run(model, checkpoints=checkpoints, checkpoint_every=1, steps=1)
    adapter = add_lora(with_factors, Lora(2, 4.0), seed=0)
    with pytest.raises(ArtifactError) as error:
        run(with_factors, checkpoints=checkpoints, adapter=adapter, steps=1)
    assert str(tmp_path / "run") in str(error.value) and "lm_head.weight" in str(error.value)


def test_a_pruned_model_that_trains_on_stays_pruned(model, run):
    """A neuron without weights in and out has no gradient: combinations need no mask to hold it at zero."""
    selection = {mlp.name: torch.tensor([1, 5]) for mlp in anatomy(model).mlps}
    zero_neurons(model, selection)
    before = weights(model)
    run(model, "npo", steps=6, weight_decay=0.1)
    for mlp in anatomy(model).mlps:
        units = selection[mlp.name]
        assert not bool(model.get_parameter(f"{mlp.down}.weight")[:, units].any()), mlp.name
        for up in mlp.up:
            assert not bool(model.get_parameter(f"{up}.weight")[units].any()), up
    assert distance(before, weights(model)) > 1e-4


def test_a_model_unlearned_once_can_be_unlearned_again(model, run):
    run(model)
    assert run(model, "npo").steps == STEPS


def test_the_retain_loss_alone_is_fine_tuning(model, processor, pictured):
    result = fit(model, Terms(retain=Encoder(processor, pictured)), steps=2)
    assert set(result.history[0]) == {"step", "learning_rate", "retain_loss", "retain_grad_norm"}


def test_bfloat16_is_refused_on_a_gpu_that_only_emulates_it(monkeypatch):
    supported = {True: True, False: False}
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported[including_emulation]
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Turing GPU")
    with pytest.raises(ModelError, match=r"'bf16' and Turing GPU"):
        check_precision("bf16", torch.device("cuda"))
    check_precision("fp16", torch.device("cuda"))
    check_precision("bf16", torch.device("cpu"))
    supported[False] = True
    check_precision("bf16", torch.device("cuda"))
