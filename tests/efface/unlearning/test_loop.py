"""The training loop: exact freezing outside the mask, exact resume, stop rules, parity with a plain loop."""

from __future__ import annotations

import copy
import dataclasses
import math
import weakref

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import ArtifactError
from efface.models import anatomy
from efface.unlearning import METHODS
from efface.unlearning.training import loop
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import DivergenceError, LoopConfig, Terms, schedule, train
from efface.unlearning.training.streams import BatchStream
from tests.efface.unlearning.losses import settings_of


def terms(processor, pictured, written, **changes):
    values = {
        "forget": Encoder(processor, pictured[:4]),
        "retain": Encoder(processor, pictured[4:] + written[4:]),
        "method": METHODS["grad_diff"],
    }
    return Terms(**(values | changes))


def random_mask(model, share=0.4):
    generator = torch.Generator().manual_seed(1)
    names = set(anatomy(model).maskable)
    return {
        n: torch.rand(p.shape, generator=generator) < share for n, p in model.named_parameters() if n in names
    }


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_outside_the_mask_nothing_moves_without_a_retain_term(model, processor, pictured, written, decay):
    mask, before = random_mask(model), weights(model)
    config = LoopConfig(learning_rate=1e-3, steps=20, batch_size=2, retain_weight=0, weight_decay=decay)
    train(model, terms(processor, pictured, written, mask=mask), config)
    for name, parameter in model.named_parameters():
        kept = mask.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[~kept], before[name][~kept]), name
    moved = [bool((p[mask[n]] != before[n][mask[n]]).any()) for n, p in model.named_parameters() if n in mask]
    assert sum(moved) > len(moved) // 2


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_moments_of_the_selected_weights_alone_do_the_same(
    model, processor, pictured, written, decay, tmp_path
):
    mask, alone, resumed = random_mask(model, share=0.2), copy.deepcopy(model), copy.deepcopy(model)
    before = weights(model)
    made = terms(processor, pictured, written, mask=mask)
    config = LoopConfig(learning_rate=1e-3, steps=9, batch_size=2, retain_weight=0, weight_decay=decay)
    few = dataclasses.replace(config, optimizer_state="selected", checkpoint_every=4)
    train(model, made, config)
    train(alone, made, few, checkpoints=Checkpoints(tmp_path / "run", key="k"))
    for (name, a), (_, b) in zip(model.named_parameters(), alone.named_parameters(), strict=True):
        kept = mask.get(name, torch.zeros_like(a, dtype=torch.bool))
        assert torch.equal(b[~kept], before[name][~kept]), name
        # The gradient of a bias of the keys is rounding noise, which AdamW blows up.
        assert name.endswith("k_proj.bias") or torch.allclose(a, b, atol=1e-5), name
    assert any(bool((p != before[n]).any()) for n, p in alone.named_parameters())
    # The checkpoint is that of step 8: one more step from it gives the same weights.
    assert train(resumed, made, few, checkpoints=Checkpoints(tmp_path / "run", key="k")).steps == 9
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), resumed.parameters(), strict=True))


def test_only_selected_weights_have_moments_if_they_are_few(model, processor, pictured, written, monkeypatch):
    moments = []
    original = torch.optim.AdamW.step

    def counting(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        moments.append(sum(state["exp_avg"].numel() for state in self.state.values()))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    for share in (0.2, 0.6):
        made = terms(processor, pictured, written, mask=random_mask(model, share=share))
        config = LoopConfig(learning_rate=1e-3, steps=1, batch_size=2, optimizer_state="selected")
        train(model, made, config)  # a retain term moves every weight
        train(model, made, dataclasses.replace(config, retain_weight=0))
    few = sum(int(entry.sum()) for entry in random_mask(model, share=0.2).values())
    assert moments[1] <= few < moments[0] / 3
    assert moments[3] > few


def test_batches_made_beside_the_training_change_nothing(model, processor, pictured, written):
    import threading

    beside, before = copy.deepcopy(model), threading.active_count()
    method = METHODS["idk_dpo"]
    made = terms(processor, pictured, written, method=method, settings=settings_of(method))
    made.other = Encoder(processor, pictured[:4])
    config = LoopConfig(learning_rate=1e-3, steps=7, batch_size=2, retain_batches_per_forget_batch=2)
    expected = train(model, made, config)
    found = train(beside, made, dataclasses.replace(config, prefetch=True))
    assert found.history == expected.history and threading.active_count() == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), beside.parameters(), strict=True))


def test_outside_the_mask_weights_move_as_the_retain_term_alone_moves_them(
    model, processor, pictured, written
):
    mask, alone = random_mask(model), copy.deepcopy(model)
    with_forget = terms(processor, pictured, written, mask=mask)
    only_retain = terms(processor, pictured, written, forget=None)
    train(model, with_forget, LoopConfig(learning_rate=1e-3, steps=1, batch_size=4))
    train(alone, only_retain, LoopConfig(learning_rate=1e-3, steps=1, batch_size=4))
    inside = 0
    for (name, a), (_, b) in zip(model.named_parameters(), alone.named_parameters(), strict=True):
        kept = mask.get(name, torch.zeros_like(a, dtype=torch.bool))
        assert torch.equal(a[~kept], b[~kept]), name
        inside += int((a[kept] != b[kept]).sum())
    assert inside > 0


def test_the_optimizer_finds_one_gradient_in_memory(model, processor, pictured, written, monkeypatch):
    """That of the forget term, to which the retain term's was added and which nobody else holds."""
    taken, alive = [], []
    original, step = loop.take_gradients, torch.optim.AdamW.step

    def taking(*args, **kwargs):
        found, norm = original(*args, **kwargs)
        taken.append([weakref.ref(gradient) for gradient in found.values()])
        return found, norm

    def counting(self, *args, **kwargs):
        alive.append([sum(ref() is not None for ref in term) for term in taken[-2:]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(loop, "take_gradients", taking)
    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    config = LoopConfig(learning_rate=1e-3, steps=2, batch_size=2)
    train(model, terms(processor, pictured, written, retain=Encoder(processor, pictured[4:])), config)
    assert alive == [[len(taken[0]), 0]] * 2 and len(taken[0]) > 20


def test_equals_a_plain_loop_written_out(model, processor, pictured, written):
    """Gradient of the retain loss minus gradient of the forget loss, each clipped, into one AdamW step."""
    plain = copy.deepcopy(model)
    config = LoopConfig(learning_rate=2e-3, steps=5, batch_size=2, seed=3)
    made = terms(processor, pictured, written)
    train(model, made, config)

    forget = BatchStream(made.forget, batch_size=2, seed=3)
    retain = BatchStream(made.retain, batch_size=2, seed=4)
    parameters = list(plain.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1, weight_decay=0)
    for step in range(5):
        total = [torch.zeros_like(p) for p in parameters]
        for sign, stream in ((-1, forget), (1, retain)):
            gradients = torch.autograd.grad(
                sign * nll(plain, stream.batch_at(step)), parameters, allow_unused=True
            )
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient * min(1.0, 1.0 / norm)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient if gradient.any() else None
        optimizer.param_groups[0]["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * step / 5))
        optimizer.step()
    for (name, a), b in zip(model.named_parameters(), parameters, strict=True):
        # Softmax does not see a bias of the keys: its gradient is rounding noise, which AdamW blows up.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(a, b, atol=1e-5), name


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", ["mmunlearner", "npo", "kl_min"])
def test_a_killed_run_goes_on_bit_for_bit(model, processor, pictured, written, tmp_path, monkeypatch, method):
    chosen = METHODS[method]
    made = terms(
        processor,
        pictured,
        written,
        method=chosen,
        settings=settings_of(chosen),
        mask=random_mask(model),
    )
    config = LoopConfig(learning_rate=1e-3, steps=11, batch_size=2, checkpoint_every=3, weight_decay=0.01)
    whole, killed, resumed = (copy.deepcopy(model) for _ in range(3))
    expected = train(whole, made, config)

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
        train(killed, made, config, checkpoints=Checkpoints(tmp_path / "run", key="k"))
    monkeypatch.setattr(torch.optim.AdamW, "step", original)

    result = train(resumed, made, config, checkpoints=Checkpoints(tmp_path / "run", key="k"))
    assert result.history == expected.history
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(
    model, processor, pictured, written, tmp_path
):
    made, config = (
        terms(processor, pictured, written),
        LoopConfig(learning_rate=1e-3, steps=2, checkpoint_every=1),
    )
    train(model, made, config, checkpoints=Checkpoints(tmp_path / "run", key="one"))
    with pytest.raises(ArtifactError, match="belongs to a run with other settings or data"):
        train(model, made, config, checkpoints=Checkpoints(tmp_path / "run", key="two"))
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is damaged"):
        train(model, made, config, checkpoints=Checkpoints(tmp_path / "run", key="one"))


def test_the_checkpoint_before_is_used_when_the_swap_was_cut_short(
    model, processor, pictured, written, tmp_path
):
    made, config = (
        terms(processor, pictured, written),
        LoopConfig(learning_rate=1e-3, steps=2, checkpoint_every=2),
    )
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    train(model, made, config, checkpoints=checkpoints)
    (tmp_path / "run").rename(tmp_path / "run.previous")
    optimizer = torch.optim.AdamW(model.parameters())
    assert checkpoints.load(model, optimizer).step == 2
    checkpoints.remove()
    assert checkpoints.load(model, optimizer) is None and not list(tmp_path.iterdir())


def test_not_a_number_ends_the_run_and_names_the_step(model, processor, pictured, written, tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    config = LoopConfig(learning_rate=1e-3, steps=4, batch_size=2, checkpoint_every=2)
    train(model, terms(processor, pictured, written), config, checkpoints=checkpoints)
    good = weights(model)
    calls = 0

    def breaking(*args):
        nonlocal calls
        calls += 1
        term = METHODS["grad_diff"].forget_loss(*args)
        return term if calls < 2 else type(term)(loss=term.loss * float("nan"), nll=term.nll)

    broken = dataclasses.replace(METHODS["grad_diff"], forget_loss=breaking)

    longer = LoopConfig(learning_rate=1e-3, steps=8, batch_size=2, checkpoint_every=100)
    with pytest.raises(
        DivergenceError, match=r"forget_loss is nan at step 5 of 8; the checkpoint of step 4 is kept"
    ) as caught:
        train(model, terms(processor, pictured, written, method=broken), longer, checkpoints=checkpoints)
    assert [record["step"] for record in caught.value.history] == [0, 1, 2, 3, 4]
    assert all(torch.equal(p, good[name]) for name, p in model.named_parameters())


def test_stop_rule_on_the_forget_loss_names_itself(model, processor, pictured, written):
    config = LoopConfig(learning_rate=5e-3, steps=200, batch_size=4, retain_weight=0, stop_forget_loss=8.0)
    result = train(model, terms(processor, pictured, written), config)
    assert result.steps < 200
    assert result.stopped_by.startswith("forget_loss")
    assert result.stopped_by.endswith(f"> 8.0 at step {result.steps}")
    assert result.history[-1]["forget_loss"] > 8 >= result.history[-2]["forget_loss"]


def test_stop_rule_on_the_rise_of_the_retain_loss(model, processor, pictured, written):
    config = LoopConfig(
        learning_rate=5e-3, steps=200, batch_size=4, forget_weight=3, retain_weight=1e-3, stop_retain_rise=1.0
    )
    result = train(model, terms(processor, pictured, written), config)
    assert result.steps < 200 and result.stopped_by.startswith("retain_loss rose by")


def test_a_mask_that_reaches_no_trainable_weight_is_an_error(model, processor, pictured, written):
    made = terms(processor, pictured, written, mask={"other.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="selects no weight that trains: it names 1 parameters"):
        train(model, made, LoopConfig(learning_rate=1e-3, steps=1))


def test_nothing_to_train_on_is_an_error(model, processor, pictured, written):
    with pytest.raises(ValueError, match="nothing to train on"):
        train(
            model,
            terms(processor, pictured, written),
            LoopConfig(1e-3, steps=1, forget_weight=0, retain_weight=0),
        )
    with pytest.raises(ValueError, match="set either steps or epochs"):
        train(model, terms(processor, pictured, written), LoopConfig(1e-3))


def test_every_parameter_on_the_path_moves(model, processor, pictured, written):
    before = weights(model)
    train(model, terms(processor, pictured, written), LoopConfig(learning_rate=1e-3, steps=3))
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {name.split(".")[2] for name in still} <= {"post_layernorm"}


def test_schedule_rises_then_falls():
    rates = [schedule(step, 20, 0.25) for step in range(20)]
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] > 0 and rates[5] == 1 and 0 < rates[-1] < 0.05


def test_batches_visit_every_sample_once_per_epoch_and_never_mix_renderings(processor, pictured, written):
    encoder = Encoder(processor, pictured + written[:5])
    stream = BatchStream(encoder, batch_size=3, seed=0)
    epochs = []
    for epoch in range(3):
        batches = [
            stream.indices_at(epoch * stream.batches_per_epoch + k) for k in range(stream.batches_per_epoch)
        ]
        assert sorted(i for batch in batches for i in batch) == list(range(13))
        assert all(len({encoder.samples[i].image_bytes is None for i in batch}) == 1 for batch in batches)
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    again = BatchStream(encoder, batch_size=3, seed=0)
    assert again.indices_at(2 * stream.batches_per_epoch) == epochs[2][0]
    with pytest.raises(ValueError, match="empty set"):
        BatchStream(Encoder(processor, []), batch_size=3, seed=0)
