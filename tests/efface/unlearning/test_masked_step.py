"""Compiled masked steps: AdamW on masked gradients within rounding, its state, nothing moved that is held.

What a compiler makes of the passes is its own affair: tests run them as written, but for one, which is slow.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math

import pytest
import torch

from efface.encoding import Encoder
from efface.masks import Masks, pack
from efface.unlearning import METHODS
from efface.unlearning.training import fused
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import LoopConfig
from efface.unlearning.training.loop import Terms, train
from efface.unlearning.training.masked import Compiled, Whole, masked_weights

PLAIN = LoopConfig(1e-2, retain_weight=0, weight_decay=0.1)
COMPILED = dataclasses.replace(PLAIN, masked_step="compiled")


@pytest.fixture
def written_out(monkeypatch):
    """The passes as they are written, without a compiler; says which were asked for."""
    asked = []

    def not_compiled(function, device, tensors, *, numbers=False):
        asked.append(function.__name__)
        return function

    monkeypatch.setattr(fused, "_compiled", not_compiled)
    return asked


def made(seed=0, count=fused.TOGETHER + 3):
    """Parameters of many sizes, two of which do not fit, their mask, and gradients per step."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {str(i): (32 * (i + 1), 3) for i in range(count)} | {"odd": (5, 7), "turned": (64, 32)}
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    }
    parameters["turned"] = torch.nn.Parameter(parameters["turned"].detach().T)
    mask = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in parameters.items()}

    def gradients():
        found = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
        found["0"][:7] = 0  # a weight without a gradient decays all the same
        for name in ("1", "turned"):  # fused AdamW takes a gradient to lie as its parameter does
            found[name] = found[name].T.contiguous().T
        return found

    return parameters, mask, gradients


def stepped(masked, optimizer, gradients, others=None):
    """A step as the loop makes it."""
    found = masked.apply({name: g.clone() for name, g in gradients.items()})
    others = {name: g.clone() for name, g in (others or {}).items()}
    norm = masked.norm(found)
    masked.join(found, others)
    for name, parameter in masked.updated.items():
        parts = [part[name] for part in (found, others) if name in part]
        parameter.grad = sum(parts[1:], parts[0]) if parts else None
    optimizer.step()
    masked.stepped()
    return norm


def close(a, b):
    # A float32 has 24 bits; three dozen roundings, and numbers of 1 and more.
    return torch.allclose(a, b, rtol=1e-6, atol=2e-6)


def exercise(only):
    """Compiled steps beside AdamW on products of gradients and masks."""
    parameters, mask, gradients = made()
    twins = {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=only)
    assert isinstance(masked, Compiled)
    optimizer = masked.optimizer(COMPILED, torch.device("cpu"))
    plain = torch.optim.AdamW(twins.values(), lr=1e-2, weight_decay=0.1)
    for step in range(20):
        rate = 1e-2 * (1 - step / 30)
        optimizer.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = rate
        found = gradients()
        for name, twin in twins.items():
            twin.grad = found[name] * mask[name]
        plain.step()
        norm = stepped(masked, optimizer, found)
        expected = math.sqrt(sum(float(t.grad.double().square().sum()) for t in twins.values()))
        assert float(norm) == pytest.approx(expected, rel=1e-6)
        if not only and step % 3 == 2:  # as a retain step between forget steps
            for name, twin in twins.items():
                twin.grad = found[name].clone()
                parameters[name].grad = torch.empty_like(twin).copy_(found[name])
            plain.step()
            optimizer.step()
    for name, parameter in parameters.items():
        inside = mask[name] if only else torch.ones_like(mask[name])
        assert torch.equal(parameter[~inside], before[name][~inside]), name
        assert close(parameter[inside], twins[name][inside]), name
        assert float((parameter.detach()[inside] - before[name][inside]).abs().min()) > 0
        for part in ("exp_avg", "exp_avg_sq"):
            assert close(optimizer.state[parameter][part], plain.state[twins[name]][part]), (name, part)
        assert optimizer.state[parameter]["step"] == plain.state[twins[name]]["step"]
    return parameters, optimizer


@pytest.mark.parametrize("only", [True, False])
def test_steps_are_adamws_on_masked_gradients_and_held_weights_stay(written_out, only):
    exercise(only)
    assert {"_squares", "_held_steps" if only else "_steps"} <= set(written_out)


@pytest.mark.slow
@pytest.mark.parametrize("only", [True, False])
def test_compiled_once_for_all_sizes(only):
    from torch._dynamo.utils import counters

    exercise(only)
    graphs = counters["stats"]["unique_graphs"]
    parameters, mask, gradients = made(seed=1, count=3)
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=only)
    stepped(
        masked, masked.optimizer(COMPILED, torch.device("cpu")), gradients(), None if only else gradients()
    )
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_a_retain_gradient_is_added_outside_the_mask_too(written_out):
    parameters, mask, gradients = made()
    del mask["3"]
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=False)
    optimizer = masked.optimizer(COMPILED, torch.device("cpu"))
    forget, retain = gradients(), gradients()
    del retain["4"]  # no picture in the batch: the step masks what it reads
    twins = {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    for name, twin in twins.items():
        twin.grad = forget[name] * mask.get(name, torch.tensor(0.0)) + retain.get(name, torch.tensor(0.0))
    torch.optim.AdamW(twins.values(), lr=1e-2, weight_decay=0.1).step()
    stepped(masked, optimizer, forget, retain)
    assert all(close(p, twins[name]) for name, p in parameters.items())
    assert "_sums" in written_out


def test_the_others_gradients_are_let_go_of(written_out):
    parameters, mask, gradients = made()
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=False)
    others = gradients()
    masked.join(masked.apply(gradients()), others)
    assert sorted(others) == ["odd", "turned"]  # these are the caller's to add


def test_the_state_is_adamws(written_out, tmp_path):
    parameters, optimizer = exercise(True)
    plain = torch.optim.AdamW(parameters.values(), lr=1.0, fused=True)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masked = masked_weights(parameters, Masks(made()[1]), COMPILED, only=False)
    again = masked.optimizer(COMPILED, torch.device("cpu"))
    again.load_state_dict(copy.deepcopy(plain.state_dict()))
    for parameter in parameters.values():
        parts = zip(optimizer.state[parameter].items(), again.state[parameter].items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in parts)


def test_moments_that_were_loaded_are_those_that_move(written_out):
    parameters, mask, gradients = made()
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=True)
    optimizer = masked.optimizer(COMPILED, torch.device("cpu"))
    stepped(masked, optimizer, gradients())
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in parameters.values()]
    found, ends = gradients(), []
    for _ in range(2):
        stepped(masked, optimizer, found)
        ends.append([p.detach().clone() for p in parameters.values()])
        optimizer.load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), weights, strict=True):
                parameter.copy_(value)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grad_diff", {"retain_weight": 0, "weight_decay": 0.1}),
        ("grad_diff", {"retain_weight": 0, "max_grad_norm": 0.05}),
        ("grad_diff", {"max_grad_norm": 0.05}),
        ("mmunlearner", {"weight_decay": 0.1}),
    ],
)
def test_a_run_and_one_that_was_resumed_are_those_of_masked_gradients(
    model, processor, pictured, written, method, options, written_out, tmp_path
):
    generator = torch.Generator().manual_seed(0)
    mask = {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in model.named_parameters()}
    compiled, resumed = copy.deepcopy(model), copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    terms = Terms(
        forget=Encoder(processor, pictured[:4]),
        retain=Encoder(processor, pictured[4:] + written[4:]),
        method=METHODS[method],
        settings=METHODS[method].settings(
            **({"variant": "official_code"} if method == "mmunlearner" else {})
        ),
        mask=mask,
    )
    config = LoopConfig(1e-3, steps=6, batch_size=2, checkpoint_every=4, **options)
    expected = train(model, terms, config)
    config = dataclasses.replace(config, masked_step="compiled")
    found = train(compiled, terms, config, checkpoints=Checkpoints(tmp_path / "run", key="k"))
    train(resumed, terms, config, checkpoints=Checkpoints(tmp_path / "run", key="k"))
    assert written_out
    for old, new in zip(expected.history, found.history, strict=True):
        assert old == pytest.approx(new, rel=1e-3)
    for (name, a), (_, b) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        # The gradient of a bias of the keys is rounding noise, which AdamW blows up.
        assert name.endswith("k_proj.bias") or torch.allclose(a, b, atol=1e-5), name
        if options.get("retain_weight") == 0:
            assert torch.equal(b[~mask[name]], before[name][~mask[name]]), name
    assert all(torch.equal(a, b) for a, b in zip(compiled.parameters(), resumed.parameters(), strict=True))


def test_a_gradient_that_is_no_number_is_seen_outside_the_mask_too(written_out):
    parameters, mask, gradients = made()
    found = gradients()
    found["2"][~mask["2"]] = math.nan
    masked = masked_weights(parameters, Masks(mask), COMPILED, only=True)
    assert math.isnan(masked.norm(masked.apply(found)))


def test_bits_anywhere_in_memory_can_be_read():
    bits = pack(torch.rand(128, generator=torch.Generator().manual_seed(0)) < 0.5)
    moved = torch.cat([bits.new_zeros(1), bits])[1:]
    assert torch.equal(fused.words(moved), fused.words(bits))


@pytest.mark.parametrize(
    ("options", "kept", "said"),
    [
        ({"precision": "fp16"}, "0", "fp16 are scaled"),
        ({}, "odd", "none of 1 masked parameters is float32, on cpu or cuda, in one piece"),
        ({}, "0", "no compiler here"),
    ],
)
def test_where_nothing_can_be_compiled_steps_are_done_in_parts_and_a_line_says_why(
    monkeypatch, caplog, options, kept, said
):
    def failing(*args, **kwargs):
        raise RuntimeError("no compiler here\nand a page about it")

    monkeypatch.setattr(fused, "_compiled", failing)
    parameters, mask, _ = made()
    with caplog.at_level(logging.WARNING):
        config = dataclasses.replace(COMPILED, **options)
        masked = masked_weights(
            {kept: parameters[kept]}, Masks({kept: mask[kept]}), config, only=True
        )
    assert type(masked) is Whole and len(caplog.records) == 1
    assert said in caplog.text and "done in parts" in caplog.text and "a page" not in caplog.text


def test_sharded_weights_are_done_in_parts(caplog):
    parameters, mask, _ = made()
    assert type(masked_weights(parameters, mask, COMPILED, only=True)) is Whole
    assert "the weights are sharded" in caplog.text


def test_only_those_who_ask_wait_for_a_compiler(written_out):
    parameters, mask, _ = made()
    assert type(masked_weights(parameters, Masks(mask), PLAIN, only=True)) is Whole
    assert written_out == []
