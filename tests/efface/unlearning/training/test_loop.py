"""The training loop: exact freezing outside the mask, exact resume, stop rules, parity with a plain loop."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import ArtifactError
from efface.models import anatomy
from efface.unlearning import METHODS
from efface.unlearning.training.batch_source import EpochSampler
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import DivergenceError
from efface.unlearning.training.loop import Terms, schedule
from tests.efface.unlearning.losses import SETTINGS
from tests.efface.unlearning.runs import fit, weights


@pytest.fixture
def terms(processor, pictured, written):
    """Terms of gradient difference on four people to forget and four to retain, with changes."""

    def build(**changes):
        values = {
            "forget": Encoder(processor, pictured[:4]),
            "retain": Encoder(processor, pictured[4:] + written[4:]),
            "method": METHODS["grad_diff"],
        }
        return Terms(**(values | changes))

    return build


def random_mask(model, share=0.4):
    generator = torch.Generator().manual_seed(1)
    names = set(anatomy(model).maskable)
    return {
        n: torch.rand(p.shape, generator=generator) < share for n, p in model.named_parameters() if n in names
    }


def inside_of(mask, name, parameter):
    return mask.get(name, torch.zeros_like(parameter, dtype=torch.bool))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_outside_the_mask_nothing_moves_without_a_retain_term(model, terms, decay):
    mask, before = random_mask(model), weights(model)
    fit(model, terms(mask=mask), steps=20, retain_weight=0.0, weight_decay=decay)
    for name, parameter in model.named_parameters():
        inside = inside_of(mask, name, parameter)
        assert torch.equal(parameter[~inside], before[name][~inside]), name
    moved = [bool((p[mask[n]] != before[n][mask[n]]).any()) for n, p in model.named_parameters() if n in mask]
    assert sum(moved) > len(moved) // 2


@pytest.mark.parametrize("clip", ["apart", "sum"])
def test_outside_the_mask_weights_move_as_the_retain_term_alone_moves_them(model, terms, clip):
    """Under a mask the terms are clipped apart in any case: the forget gradient must not scale the other."""
    mask, retain_only = random_mask(model), copy.deepcopy(model)
    fit(model, terms(mask=mask), steps=1, batch_size=4, clip=clip)
    fit(retain_only, terms(forget=None), steps=1, batch_size=4)
    different = 0
    for (name, a), (_, b) in zip(model.named_parameters(), retain_only.named_parameters(), strict=True):
        inside = inside_of(mask, name, a)
        assert torch.equal(a[~inside], b[~inside]), name
        different += int((a[inside] != b[inside]).sum())
    assert different > 0


@pytest.mark.parametrize("clip", ["apart", "sum"])
def test_equals_a_plain_loop_written_out(model, terms, clip):
    """Gradients of the retain loss and of minus the forget loss, clipped each or their sum, into AdamW."""
    plain, grad_diff = copy.deepcopy(model), terms()
    fit(model, grad_diff, learning_rate=2e-3, steps=5, seed=3, clip=clip)

    def clipped(gradients):
        scale = min(1.0, 1.0 / math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        return [g * scale for g in gradients]

    forget = EpochSampler(grad_diff.forget.samples, batch_size=2, seed=3)
    retain = EpochSampler(grad_diff.retain.samples, batch_size=2, seed=4)
    parameters = list(plain.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1, weight_decay=0)
    for step in range(5):
        terms_of_step = []
        for sign, encoder, sampler in ((-1, grad_diff.forget, forget), (1, grad_diff.retain, retain)):
            loss = sign * nll(plain, encoder.batch(sampler.indices_at(step)))
            values = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            terms_of_step.append(clipped(values) if clip == "apart" else values)
        total = [a + b for a, b in zip(*terms_of_step, strict=True)]
        total = total if clip == "apart" else clipped(total)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient if gradient.any() else None
        optimizer.param_groups[0]["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * step / 5))
        optimizer.step()
    for (name, a), b in zip(model.named_parameters(), parameters, strict=True):
        # Softmax ignores the bias of the keys: its gradient is rounding noise, which AdamW scales up.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(a, b, atol=1e-5), name


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", ["mmunlearner", "npo", "kl_min"])
def test_a_killed_run_resumes_bit_for_bit(model, terms, tmp_path, monkeypatch, name):
    masked = terms(method=METHODS[name], mask=random_mask(model))
    values = {"steps": 11, "checkpoint_every": 3, "weight_decay": 0.01} | SETTINGS.get(name, {})
    whole, killed, resumed = (copy.deepcopy(model) for _ in range(3))
    expected = fit(whole, masked, **values)

    steps = 0
    original = torch.optim.AdamW.step

    def dying(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KilledError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dying)
    with pytest.raises(KilledError):
        fit(killed, masked, checkpoints=Checkpoints(tmp_path / "run", key="k"), **values)
    monkeypatch.setattr(torch.optim.AdamW, "step", original)

    result = fit(resumed, masked, checkpoints=Checkpoints(tmp_path / "run", key="k"), **values)
    assert result.history == expected.history
    for (parameter_name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), parameter_name


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(model, terms, tmp_path):
    values = {"steps": 2, "checkpoint_every": 1}
    fit(model, terms(), checkpoints=Checkpoints(tmp_path / "run", key="one"), **values)
    with pytest.raises(ArtifactError) as error:
        fit(model, terms(), checkpoints=Checkpoints(tmp_path / "run", key="two"), **values)
    assert str(tmp_path / "run") in str(error.value) and "key one" in str(error.value)
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtifactError) as error:
        fit(model, terms(), checkpoints=Checkpoints(tmp_path / "run", key="one"), **values)
    assert str(tmp_path / "run") in str(error.value) and "damaged" in str(error.value)


def test_the_previous_checkpoint_is_used_when_the_swap_was_cut_short(model, terms, tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    fit(model, terms(), checkpoints=checkpoints, steps=2, checkpoint_every=2)
    (tmp_path / "run").rename(tmp_path / "run.previous")
    optimizer = torch.optim.AdamW(model.parameters())
    assert checkpoints.load(model, optimizer).step == 2
    checkpoints.remove()
    assert checkpoints.load(model, optimizer) is None and not list(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_ends_the_run_with_its_step(model, terms, tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    fit(model, terms(), checkpoints=checkpoints, steps=4, checkpoint_every=2)
    saved = weights(model)
    calls = 0

    def breaking(*args):
        nonlocal calls
        calls += 1
        term = METHODS["grad_diff"].forget_loss(*args)
        return term if calls < 2 else type(term)(loss=term.loss * float("nan"), nll=term.nll)

    broken = terms(method=dataclasses.replace(METHODS["grad_diff"], forget_loss=breaking))
    with pytest.raises(DivergenceError) as error:
        fit(model, broken, checkpoints=checkpoints, steps=8, checkpoint_every=100)
    for part in ("forget_loss is nan", "step 5 of 8", "checkpoint of step 4"):
        assert part in str(error.value)
    assert [record["step"] for record in error.value.history] == [0, 1, 2, 3, 4]
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())


def test_stop_rule_on_the_forget_loss_names_itself(model, terms):
    result = fit(
        model, terms(), learning_rate=5e-3, steps=200, batch_size=4, retain_weight=0.0, stop_forget_loss=8.0
    )
    assert result.steps < 200
    assert result.stopped_by.startswith("forget_loss")
    assert result.stopped_by.endswith(f"> 8.0 at step {result.steps}")
    assert result.history[-1]["forget_loss"] > 8 >= result.history[-2]["forget_loss"]


def test_stop_rule_on_the_rise_of_the_retain_loss(model, terms):
    weighted = {"forget_weight": 3.0, "retain_weight": 1e-3}
    result = fit(
        model, terms(), learning_rate=5e-3, steps=200, batch_size=4, stop_retain_rise=1.0, **weighted
    )
    assert result.steps < 200 and result.stopped_by.startswith("retain_loss")


def test_a_mask_that_reaches_no_trainable_weight_is_an_error(model, terms):
    with pytest.raises(ValueError) as error:
        fit(model, terms(mask={"absent.weight": torch.ones(3, dtype=torch.bool)}), steps=1)
    assert "mask" in str(error.value) and "absent.weight" in str(error.value)


def test_a_mask_of_another_shape_is_an_error(model, terms):
    with pytest.raises(ValueError) as error:
        fit(model, terms(mask={"lm_head.weight": torch.ones(3, dtype=torch.bool)}), steps=1)
    assert "lm_head.weight" in str(error.value) and "(3,)" in str(error.value)


def test_nothing_to_train_on_is_an_error(model, terms):
    with pytest.raises(ValueError) as error:
        fit(model, terms(), steps=1, forget_weight=0.0, retain_weight=0.0)
    assert "forget" in str(error.value) and "retain" in str(error.value)


def test_every_parameter_on_the_path_moves(model, terms):
    before = weights(model)
    fit(model, terms(), steps=3, batch_size=8)
    unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {name.split(".")[2] for name in unmoved} <= {"post_layernorm"}


def test_the_optimizer_steps_with_one_gradient_in_memory(model, terms, processor, pictured, monkeypatch):
    """The retain gradients are added to the forget gradients one by one, and freed."""
    import weakref

    from efface.unlearning.training import loop

    references, alive = [], []
    clip, step = loop.clip_gradient, torch.optim.AdamW.step

    def clipping(gradient, max_norm):
        references.append([weakref.ref(value) for value in gradient.values()])
        return clip(gradient, max_norm)

    def counting(self, *args, **kwargs):
        alive.append([sum(reference() is not None for reference in term) for term in references[-2:]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(loop, "clip_gradient", clipping)
    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    fit(model, terms(retain=Encoder(processor, pictured[4:])), steps=2, clip="apart")
    assert alive == [[len(references[0]), 0]] * 2 and len(references[0]) > 20


def test_schedule_rises_then_falls():
    rates = [schedule(step, 20, 0.25) for step in range(20)]
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] > 0 and rates[5] == 1 and 0 < rates[-1] < 0.05
