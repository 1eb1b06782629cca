"""Accumulation, mixed precision, recomputed activations, pruned starts: what they change and what not."""

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
from efface.unlearning import METHODS, unlearn
from efface.unlearning.finetuning import finetune
from efface.unlearning.method import Batch, Term
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import DivergenceError, LoopConfig, Terms, train
from efface.unlearning.training.precision import Precision
from efface.unlearning.training.streams import BatchStream

CONFIG = LoopConfig(learning_rate=1e-3, steps=4, batch_size=2, seed=3)


def run(model, processor, pictured, written, config=CONFIG, **options):
    call = {"method": "grad_diff", "forget": pictured[:4], "retain": pictured[4:] + written[4:]}
    return unlearn(model, processor, config=config, **(call | options))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def distance(a, b):
    return max(float((p - b[name]).abs().max()) for name, p in a.items() if "k_proj" not in name)


def test_accumulated_batches_make_one_step_of_their_mean(model, processor, pictured, written):
    """Against gradients taken batch by batch: two forget batches, with two retain batches each."""
    seen = []
    original = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        seen.append([None if p.grad is None else p.grad.clone() for p in self.param_groups[0]["params"]])
        return original(self, *args, **kwargs)

    config = dataclasses.replace(
        CONFIG, steps=1, accumulation_steps=2, retain_batches_per_forget_batch=2, max_grad_norm=None
    )
    start = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        result = run(model, processor, pictured, written, config)
    parameters = list(start.parameters())
    forget = BatchStream(Encoder(processor, pictured[:4]), batch_size=2, seed=3)
    retain = BatchStream(Encoder(processor, pictured[4:] + written[4:]), batch_size=2, seed=4)
    sides = {
        "forget": [METHODS["grad_diff"].forget_loss, forget, range(2)],
        "retain": [METHODS["grad_diff"].retain_loss, retain, range(4)],
    }
    total = [torch.zeros_like(p) for p in parameters]
    for side, (loss, stream, positions) in sides.items():
        nlls = []
        for position in positions:
            term = loss(start, Batch(stream.batch_at(position)), {})
            nlls.append(term.nll.mean().item())
            found = torch.autograd.grad(term.loss / len(positions), parameters, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        assert result.history[0][f"{side}_loss"] == pytest.approx(sum(nlls) / len(nlls), rel=1e-5)
    for found, expected in zip(seen[0], total, strict=True):
        assert torch.allclose(torch.zeros_like(expected) if found is None else found, expected, atol=1e-5)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 6), (2, 3), (4, 2), (5, 2)])
def test_an_epoch_uses_every_sample_once_whatever_is_accumulated(
    model, processor, pictured, written, monkeypatch, accumulation, steps
):
    drawn = []
    original = BatchStream.indices_at

    def watched(self, position):
        indices = original(self, position)
        if self.seed == CONFIG.seed:
            drawn.append(tuple(indices))
        return indices

    monkeypatch.setattr(BatchStream, "indices_at", watched)
    config = dataclasses.replace(CONFIG, steps=None, epochs=1, accumulation_steps=accumulation)
    result = run(
        model,
        processor,
        pictured,
        written,
        config,
        forget=pictured[:6] + written[:5],
        retain=pictured + written,
    )
    assert result.steps == steps
    assert sorted(i for batch in drawn for i in batch) == list(range(11))


def test_recomputed_activations_give_the_same_weights(model, processor, pictured, written):
    other = copy.deepcopy(model)
    run(model, processor, pictured, written)
    calls = 0
    layer = other.model.language_model.layers[0]
    handle = layer.mlp.register_forward_pre_hook(lambda *_: count())

    def count():
        nonlocal calls
        calls += 1

    run(other, processor, pictured, written, dataclasses.replace(CONFIG, gradient_checkpointing=True))
    handle.remove()
    assert calls == 2 * 2 * CONFIG.steps  # each of two terms forward, and again when going backward
    assert distance(weights(model), weights(other)) < 1e-6
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.modules())


@pytest.mark.parametrize("method", ["rmu", "kl_min"])
def test_recomputed_activations_suit_every_kind_of_loss(model, processor, pictured, written, method):
    other = copy.deepcopy(model)
    settings = METHODS[method].settings(**{"rmu": {"layer": 1, "scale": 1.0}}.get(method, {}))
    run(model, processor, pictured, written, method=method, settings=settings)
    config = dataclasses.replace(CONFIG, gradient_checkpointing=True)
    run(other, processor, pictured, written, config, method=method, settings=settings)
    assert distance(weights(model), weights(other)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_weights_in_float32_and_comes_close(
    model, processor, pictured, written, precision
):
    other, start = copy.deepcopy(model), weights(model)
    exact = run(model, processor, pictured, written)
    mixed = run(other, processor, pictured, written, dataclasses.replace(CONFIG, precision=precision))
    assert all(p.dtype == torch.float32 for p in other.parameters())
    # Half precision has two to three digits.
    assert mixed.history[0]["forget_loss"] == pytest.approx(exact.history[0]["forget_loss"], rel=0.03)
    assert mixed.history[0]["forget_loss"] != exact.history[0]["forget_loss"]
    taken = [record for record in mixed.history if "skipped" not in record]
    assert taken and taken[-1]["forget_grad_norm"] == pytest.approx(
        exact.history[-1]["forget_grad_norm"], rel=0.3
    )
    assert distance(start, weights(other)) > 1e-4


def test_fine_tuning_computes_in_the_precision_asked_for(model, processor, pictured):
    def tuned(**options):
        changed = copy.deepcopy(model)
        result = finetune(
            changed, processor, pictured, steps=2, learning_rate=1e-3, batch_size=4, seed=0, **options
        )
        return changed, [record["retain_loss"] for record in result.history]

    whole, exact = tuned()
    again, recomputed = tuned(gradient_checkpointing=True)
    half, mixed = tuned(precision="bf16")
    assert recomputed == pytest.approx(exact, rel=1e-5) and distance(weights(whole), weights(again)) < 1e-4
    assert mixed != exact and mixed == pytest.approx(exact, rel=0.03)
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_a_gradient_that_overflows_float16_is_left_out_and_the_scale_goes_down(
    model, processor, pictured, written
):
    """A term a million times too large, for the first two steps: at a lower scale it fits again."""
    method, calls = METHODS["grad_diff"], 0

    def huge(*args):
        nonlocal calls
        calls += 1
        term = method.forget_loss(*args)
        return Term(loss=term.loss * (1e30 if calls < 3 else 1.0), nll=term.nll)

    start, steps = weights(model), []
    config = dataclasses.replace(CONFIG, precision="fp16", steps=2)
    broken = dataclasses.replace(method, forget_loss=huge)
    result = run(model, processor, pictured, written, config, method=broken)
    steps = [("skipped" in r, "forget_grad_norm" in r) for r in result.history]
    assert steps == [(True, False), (True, False)]
    assert distance(start, weights(model)) == 0


def test_a_loss_that_is_not_finite_is_divergence_in_float16_as_well(model, processor, pictured, written):
    method = METHODS["grad_diff"]

    def broken(*args):
        term = method.forget_loss(*args)
        return Term(loss=term.loss * float("inf"), nll=term.nll)

    start = weights(model)
    with pytest.raises(DivergenceError, match=r"forget_loss is -?inf at step 0 of 4; no checkpoint had been"):
        run(
            model,
            processor,
            pictured,
            written,
            dataclasses.replace(CONFIG, precision="fp16"),
            method=dataclasses.replace(method, forget_loss=broken),
        )
    assert distance(start, weights(model)) == 0  # ended before anything reached the weights


def test_scaling_is_exact(model):
    """A power of two changes no digit: scaled up, down, and up again for the optimizer."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    precision = Precision("fp16", torch.device("cpu"), {"p": parameter})
    precision.backward((parameter * torch.tensor([0.1, 0.3])).sum())
    assert parameter.grad.abs().max() > 1000
    gradient = parameter.grad
    precision.unscale([gradient])
    assert torch.equal(gradient, torch.tensor([0.1, 0.3]))
    precision.step(torch.optim.SGD([parameter], lr=1.0))
    assert torch.equal(parameter.detach(), torch.tensor([1.0, -2.0]) - torch.tensor([0.1, 0.3]))


def test_weights_in_half_are_refused_for_mixed_precision(model, processor, pictured, written):
    with pytest.raises(
        ModelError, match=r"keeps weights in float32, but .* is torch.bfloat16; load the model"
    ):
        run(model.bfloat16(), processor, pictured, written, dataclasses.replace(CONFIG, precision="bf16"))


def test_an_unknown_precision_lists_the_known_ones(model, processor, pictured, written):
    with pytest.raises(ValueError, match="precision is 'fp8': expected one of: fp32, bf16, fp16"):
        run(model, processor, pictured, written, dataclasses.replace(CONFIG, precision="fp8"))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_resume_with_dropout_factors_and_a_gradient_scale_is_exact(
    model, processor, pictured, written, tmp_path, monkeypatch, precision
):
    models = [copy.deepcopy(model) for _ in range(3)]
    adapters = [add_lora(m, Lora(4, 8.0, 0.3, ("language", "vision")), seed=0) for m in models]
    config = dataclasses.replace(CONFIG, steps=9, checkpoint_every=2, precision=precision)
    monkeypatch.setattr(  # a scale that moves while the run lasts
        torch.amp.GradScaler, "get_growth_interval", lambda self: 2
    )
    expected = run(models[0], processor, pictured, written, config, adapter=adapters[0])
    steps, original = 0, Checkpoints.save

    def dying(self, *args):
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KilledError
        original(self, *args)

    checkpoints = Checkpoints(tmp_path / "run", key="k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", dying)
        with pytest.raises(KilledError):
            run(models[1], processor, pictured, written, config, adapter=adapters[1], checkpoints=checkpoints)
    resumed = run(
        models[2], processor, pictured, written, config, adapter=adapters[2], checkpoints=checkpoints
    )
    assert resumed.history == expected.history and len(expected.history) == 9
    assert distance(weights(models[0]), weights(models[2])) == 0
    for name, p in models[0].named_parameters():
        assert torch.equal(p, models[2].get_parameter(name)), name


def test_a_checkpoint_of_other_weights_is_refused(model, processor, pictured, written, tmp_path):
    other = copy.deepcopy(model)
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    config = dataclasses.replace(CONFIG, checkpoint_every=1, steps=1)
    run(model, processor, pictured, written, config, checkpoints=checkpoints)
    adapter = add_lora(other, Lora(2, 4.0), seed=0)
    with pytest.raises(ArtifactError, match="holds other weights than the model trains"):
        run(other, processor, pictured, written, config, checkpoints=checkpoints, adapter=adapter)


def test_a_pruned_model_that_trains_on_stays_pruned(model, processor, pictured, written):
    """A neuron without weights in and out has no gradient: combinations need no mask to hold it at zero."""
    selection = {mlp.name: torch.tensor([1, 5]) for mlp in anatomy(model).mlps}
    zero_neurons(model, selection)
    before = weights(model)
    config = dataclasses.replace(CONFIG, steps=6, weight_decay=0.1)
    run(model, processor, pictured, written, config, method="npo", settings=METHODS["npo"].settings(beta=0.1))
    for mlp in anatomy(model).mlps:
        units = selection[mlp.name]
        assert not bool(model.get_parameter(f"{mlp.down}.weight")[:, units].any()), mlp.name
        for up in mlp.up:
            assert not bool(model.get_parameter(f"{up}.weight")[units].any()), up
    assert distance(before, weights(model)) > 1e-4


def test_a_model_unlearned_once_can_be_unlearned_again(model, processor, pictured, written):
    run(model, processor, pictured, written)
    again = run(model, processor, pictured, written, method="npo", settings=METHODS["npo"].settings(beta=0.1))
    assert again.steps == CONFIG.steps


def test_the_retain_loss_alone_is_fine_tuning(model, processor, pictured):
    result = train(model, Terms(retain=Encoder(processor, pictured)), CONFIG)
    assert set(result.history[0]) == {"step", "learning_rate", "retain_loss", "retain_grad_norm"}
