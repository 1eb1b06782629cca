"""Options of every gradient method: SAM, an adversary in hidden states, the projector as W + sin(D)."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import answer_log_probs, nll
from efface.errors import ModelError
from efface.models import anatomy
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS
from efface.unlearning.method import Batch, ascent_loss
from efface.unlearning.training.adversary import recall, with_adversary
from efface.unlearning.training.sine import sine_projector
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import options, weights


def run(model, processor, pictured, method="grad_diff", *, adapter=None, mask=None, **values):
    return unlearn(
        model,
        processor,
        method=method,
        forget=pictured[:3],
        retain=pictured[3:],
        adapter=adapter,
        mask=mask,
        **options(method, **({"steps": 3} | values)),
    )


@pytest.mark.parametrize("method", ["grad_diff", "npo", "mmunlearner", "idk_dpo"])
def test_a_radius_of_zero_is_the_plain_step_bit_for_bit(model, processor, pictured, method):
    plain, switched = copy.deepcopy(model), model
    run(plain, processor, pictured, method)
    run(switched, processor, pictured, method, sam_radius=0.0, adversarial_radius=0.0, adversarial_layer=2)
    assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(switched).items())


def test_the_step_takes_the_gradient_at_the_moved_weights(model, processor, pictured):
    """Plain SGD's gradient shows in the first AdamW moment; here it is compared by the recorded norm."""
    radius, by_hand = 0.5, copy.deepcopy(model)
    batch = Encoder(processor, pictured[:3]).batch([0, 1, 2])

    def gradient():
        by_hand.zero_grad()
        (-nll(by_hand, batch)).backward()
        return {n: p.grad.clone() for n, p in by_hand.named_parameters() if p.grad is not None}

    first = gradient()
    norm = torch.nn.utils.get_total_norm(first.values())
    with torch.no_grad():
        for name, value in first.items():
            by_hand.get_parameter(name).add_(radius * value / norm)
    moved = torch.nn.utils.get_total_norm(gradient().values())
    before = weights(model)
    result = run(
        model,
        processor,
        pictured,
        steps=1,
        batch_size=3,
        sam_radius=radius,
        retain_weight=0.0,
        learning_rate=1e-9,
    )
    assert result.history[0]["forget_grad_norm"] == pytest.approx(moved.item(), rel=1e-4)
    assert abs(moved - norm) > 1e-2 * norm
    assert result.history[0]["forget_loss"] == pytest.approx(nll(model, batch).item(), rel=1e-4)
    for name, weight in weights(model).items():  # the move itself leaves no trace
        assert torch.allclose(weight, before[name], atol=1e-7)


def test_the_adversary_makes_the_answer_likelier_within_the_ball(model, processor, pictured):
    batch = Batch(Encoder(processor, pictured[:2]).batch([0, 1]))
    plain = answer_log_probs(model, batch.inputs).nll.detach()
    ((ids, gradient),) = recall(model, batch, 1)
    assert torch.equal(ids, batch.inputs["input_ids"]) and gradient.shape[:2] == ids.shape
    padding = batch.inputs["attention_mask"] == 0
    assert bool((gradient[padding] == 0).all())
    attacked = with_adversary(ascent_loss, 1, 0.05)(model, batch, None)
    slope = gradient.flatten(1).norm(dim=1)
    assert bool((attacked.nll < plain).all())
    assert torch.allclose(plain - attacked.nll, 0.05 * slope, rtol=0.2)
    assert not any(p.grad is not None for p in model.parameters())
    attacked.loss.backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("method", ["npo", "idk_dpo", "rmu", "vgid", "undial"])
def test_the_adversary_changes_the_run_of_every_kind_of_loss(model, processor, pictured, method):
    plain = copy.deepcopy(model)
    settings = {"rmu": {"layer": 2}}.get(method, {})
    run(plain, processor, pictured, method, retain_weight=0.0, **settings)
    run(model, processor, pictured, method, retain_weight=0.0, adversarial_radius=2.0, **settings)
    assert any(not torch.equal(weight, weights(plain)[name]) for name, weight in weights(model).items())


def test_a_layer_that_does_not_exist(model, processor, pictured):
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured, adversarial_radius=1.0, adversarial_layer=3)
    assert "adversarial_layer is 3" in str(error.value) and "1 to 2" in str(error.value)
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured, adversarial_radius=1.0, gradient_checkpointing=True)
    assert "gradient_checkpointing" in str(error.value)


def test_the_sine_is_the_identity_before_training_and_bounds_what_training_does(model, processor, pictured):
    before = weights(model)
    batch = Encoder(processor, pictured[:2]).batch([0, 1])
    with torch.no_grad():
        start = nll(model, batch)
        with sine_projector(model):
            assert torch.equal(nll(model, batch), start)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    run(model, processor, pictured, steps=4, learning_rate=1.0, projector="sine", retain_weight=0.0)
    after = weights(model)
    assert after.keys() == before.keys() and all(p.requires_grad for p in model.parameters())
    maps = [name for name in anatomy(model).groups["projector"] if before[name].dim() > 1]
    for name in maps:
        moved = (after[name] - before[name]).abs()
        assert 0.5 < moved.max() <= 1 + 1e-6
    for name in set(anatomy(model).groups["projector"]) - set(maps):
        assert torch.equal(after[name], before[name])


def test_the_sine_trains_beside_lora_and_references_are_those_of_the_start(model, processor, pictured):
    adapter = add_lora(model, Lora(2, 4.0), seed=0)
    before = weights(model)
    run(model, processor, pictured, "npo", adapter=adapter, projector="sine", learning_rate=1e-2)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert any(".lora_" in name for name in changed)
    assert all("multi_modal_projector" in name or ".lora_" in name for name in changed)


def test_the_sine_takes_no_mask_and_no_factors(model, processor, pictured):
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured, mask=mask, projector="sine")
    assert "projector is 'sine'" in str(error.value)
    adapter = add_lora(model, Lora(2, 4.0, 0.0, ("projector",)), seed=0)
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured, adapter=adapter, projector="sine")
    assert "components" in str(error.value)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trains])
def test_every_method_that_trains_takes_the_switches(model, processor, pictured, name):
    values = {"rank": 2, "energy": 0.9} if name == "vl_eraser" else {}
    values |= {"layers": 1, "max_new_tokens": 2} if name == "pava" else {}
    values |= {"layer": 1} if name in ("rmu", "mip_editor") else {}
    result = run(model, processor, pictured, name, steps=1, sam_radius=0.1, adversarial_radius=0.1, **values)
    assert result.steps == 1
