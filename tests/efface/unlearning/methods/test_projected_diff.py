"""Projected difference: the protected span keeps its outputs, the forget set does not; no module stays."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import ModelError
from efface.models.lora import Lora, add_lora
from efface.neurons.retained import decoder_mlps, measure_retained, span_of
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import interrupted, weights


def run(
    model, processor, forget, retain, *, method="projected_diff", statistic=None, checkpoints=None, **values
):
    values = {"energy": 1.0, "steps": 6, "learning_rate": 1e-2} | values
    return unlearn(
        model,
        processor,
        method=method,
        forget=forget,
        retain=retain,
        statistic=statistic,
        settings=METHODS[method].settings(**values),
        config=TrainingConfig(batch_size=2, checkpoint_every=2),
        checkpoints=checkpoints,
    )


BOTH = pytest.mark.parametrize("method", ["projected_diff", "projected_simnpo"])


@BOTH
def test_outputs_on_the_protected_span_are_unchanged_and_those_off_it_are_not(
    model, processor, pictured, method
):
    retain = pictured[2:]
    statistic = measure_retained(model, processor, retain, batch_size=4)
    start = copy.deepcopy(model)
    run(model, processor, pictured[:2], retain, method=method)
    generator = torch.Generator().manual_seed(0)
    for mlp in decoder_mlps(model):
        before, after = (m.get_submodule(mlp.down) for m in (start, model))
        rows = statistic.span[mlp.name]
        inside = torch.randn(5, len(rows), generator=generator) @ rows
        scale = before(inside).abs().max().item()
        assert torch.allclose(after(inside), before(inside), atol=1e-5 * scale, rtol=0)
        anywhere = torch.randn(5, mlp.width, generator=generator)
        assert not torch.allclose(after(anywhere), before(anywhere), atol=1e-2 * scale, rtol=0)


def forget_loss(method, model, processor, samples):
    """Slow: ascent, or SimNPO's equation with beta 2.5 and no margin, a sample at a time."""
    encoder = Encoder(processor, samples)
    losses = torch.stack([nll(model, encoder.batch([number])) for number in range(len(samples))])
    if method == "projected_diff":
        return -losses.mean()
    return -(2 / 2.5) * torch.log(1 / (1 + torch.exp(-2.5 * losses))).mean()


@BOTH
def test_one_step_is_the_slow_one(model, processor, pictured, method):
    """The gradient by D is the gradient by W, projected: G P. Adam's first step is g / (|g| + eps)."""
    forget, retain = pictured[:2], pictured[2:8]
    statistic = measure_retained(model, processor, retain, batch_size=4)
    expected, slow = {}, copy.deepcopy(model)
    forget_loss(method, slow, processor, forget).backward()
    for mlp in decoder_mlps(slow):
        down = slow.get_submodule(mlp.down)
        span = span_of(statistic.span[mlp.name], 0.9).double()
        off = torch.eye(mlp.width).double() - span.T @ span
        gradient = down.weight.grad.double() @ off
        clear = gradient.abs() > 1e-3 * gradient.abs().max()
        step = torch.where(clear, -1e-3 * gradient / (gradient.abs() + 1e-8), torch.nan)
        expected[mlp.down] = step, off
    start = weights(model)
    values = {"energy": 0.9, "learning_rate": 1e-3, "steps": 1, "retain_weight": 0.0}
    run(model, processor, forget, [], method=method, statistic=statistic, **values)
    for name, (step, off) in expected.items():
        moved = (model.get_submodule(name).weight - start[f"{name}.weight"]).double()
        filled = step.nan_to_num() @ off  # entries without a clear sign move by at most 1e-3 each
        unclear = step.isnan().double() @ off.abs() * 1e-3
        assert ((moved - filled).abs() <= unclear + 1e-5).all()
        assert moved.abs().max() > 1e-4


def test_without_protection_every_direction_changes(model, processor, pictured):
    statistic = measure_retained(model, processor, pictured[2:], batch_size=4)
    start = copy.deepcopy(model)
    run(model, processor, pictured[:2], pictured[2:], energy=0.0)
    for mlp in decoder_mlps(model):
        rows = statistic.span[mlp.name]
        before, after = (m.get_submodule(mlp.down) for m in (start, model))
        assert not torch.allclose(after(rows), before(rows), atol=1e-2 * before(rows).abs().max().item())


def test_only_the_down_projections_change_and_no_module_stays(model, processor, pictured):
    before, plain = weights(model), copy.deepcopy(model)
    result = run(model, processor, pictured[:2], pictured[2:], steps=20)
    assert result.history[-1]["forget_loss"] > result.history[0]["forget_loss"] + 0.5
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert after.keys() == before.keys()
    assert changed == {f"{mlp.down}.weight" for mlp in decoder_mlps(model)}
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain.load_state_dict(model.state_dict())
    batch = Encoder(processor, pictured[:2]).batch([0, 1])
    with torch.no_grad():
        assert torch.equal(nll(model, batch), nll(plain, batch))


def test_it_resumes_to_the_same_weights(model, processor, pictured, tmp_path):
    whole, broken, again = (copy.deepcopy(model) for _ in range(3))
    run(whole, processor, pictured[:2], pictured[2:])
    with pytest.raises(KeyboardInterrupt):
        run(broken, processor, pictured[:2], pictured[2:], checkpoints=interrupted(tmp_path / "checkpoint"))
    resumed = Checkpoints(tmp_path / "checkpoint", key="k")
    assert run(again, processor, pictured[:2], pictured[2:], checkpoints=resumed).steps == 6
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(again).items())


def test_bad_input_before_training(model, processor, pictured):
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured[:2], [])
    assert "retain is empty" in str(error.value)
    add_lora(model, Lora(2, 2.0), seed=0)
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured[:2], pictured[2:])
    assert "down_proj" in str(error.value)
