"""MIP-Editor: attributions against finite differences, the cut, and that only the path moves."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import answer_log_probs
from efface.errors import DataError, ModelError
from efface.models import anatomy
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.method import Batch
from efface.unlearning.methods import mip_editor
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import weights

SETTINGS = {"layer": 1, "neurons_per_layer": 2, "path_steps": 2, "steps": 3}


def run(model, processor, forget, retain, **values):
    return unlearn(
        model,
        processor,
        method="mip_editor",
        forget=forget,
        retain=retain,
        settings=METHODS["mip_editor"].settings(**(SETTINGS | values)),
        config=TrainingConfig(batch_size=2),
    )


@pytest.mark.parametrize("tower", ["language", "vision"])
def test_attributions_are_those_of_finite_differences(model, processor, pictured, tower):
    model = model.double()
    mlps = [mlp for mlp in anatomy(model).mlps if mlp.tower == tower]
    last, steps, neuron = mlps[-1], 3, 5
    path = {mlp.name: torch.tensor([1, 4]) for mlp in mlps[:-1]}
    batch = Encoder(processor, pictured[:1]).batch([0])
    measured = mip_editor.attribution(model, batch, last, path, mlps, steps)

    saved = {}

    def save(name, args):
        saved[name] = args[0].detach().clone()

    handles = [
        model.get_submodule(mlp.down).register_forward_pre_hook(
            lambda module, args, name=mlp.name: save(name, args)
        )
        for mlp in mlps
    ]
    with torch.no_grad():
        answer_log_probs(model, batch)
    for handle in handles:
        handle.remove()

    def goal(k, change):
        """The goal with the path and the whole last block scaled, and one block's values changed."""
        hooks = []
        for mlp in mlps:
            if mlp.name in path:

                def scaled(module, args, name=mlp.name):
                    values = args[0].clone()
                    values[..., path[name]] = k / steps * saved[name][..., path[name]]
                    return (values,)
            else:

                def scaled(module, args, name=mlp.name):
                    return (k / steps * saved[name] + change,)

            hooks.append(model.get_submodule(mlp.down).register_forward_pre_hook(scaled))
        with torch.no_grad():
            total = answer_log_probs(model, batch).total
        for hook in hooks:
            hook.remove()
        return float(total.exp() if tower == "language" else total)

    own, expected, eps = saved[last.name], 0.0, 1e-2
    for k in range(1, steps + 1):
        for index in torch.cartesian_prod(*map(torch.arange, own.shape[:-1])):
            place = (*index.tolist(), neuron)
            change = torch.zeros_like(own)
            change[place] = eps
            slope = (goal(k, change) - goal(k, -change)) / (2 * eps)
            expected += float(own[place]) * (slope if tower == "language" else slope**2)
    assert measured[neuron].item() == pytest.approx(expected, rel=2e-2, abs=1e-9)


def test_only_the_neurons_of_the_path_move(model, processor, pictured, written):
    before = weights(model)
    result = run(model, processor, [*pictured[:2], *written[:2]], [*pictured[2:], *written[2:]])
    path = result.details["path"]
    blocks = {mlp.name: mlp for mlp in anatomy(model).mlps}
    assert path.keys() == blocks.keys() and all(len(units) == 2 for units in path.values())
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    expected = set()
    for name, units in path.items():
        down = f"{blocks[name].down}.weight"
        difference = (model.get_parameter(down) != before[down]).any(dim=0).nonzero().flatten().tolist()
        assert set(difference) <= set(units)
        expected |= {down}
        for up in blocks[name].up:
            for parameter in (f"{up}.weight", f"{up}.bias"):
                if parameter in before:
                    moved = (model.get_parameter(parameter) != before[parameter]).reshape(
                        len(before[parameter]), -1
                    )
                    assert set(moved.any(dim=1).nonzero().flatten().tolist()) <= set(units)
                    expected |= {parameter}
    assert changed and changed <= expected
    assert all(p.requires_grad for p in model.parameters())


def test_the_cut_switches_the_path_off_and_references_come_from_before(
    model, processor, pictured, monkeypatch
):
    blocks = {mlp.name: mlp for mlp in anatomy(model).mlps}
    path = {name: torch.tensor([0, 3]) for name in blocks}
    start = copy.deepcopy(model)
    mip_editor.cut(model, blocks, path)
    for mlp in blocks.values():
        weight = model.get_submodule(mlp.down).weight
        assert bool((weight[:, [0, 3]] == 0).all())
        assert torch.equal(weight[:, 4:], start.get_submodule(mlp.down).weight[:, 4:])
    calls = []
    reference = METHODS["mip_editor"].retain_reference
    method = METHODS["mip_editor"]

    def recorded(model, inputs, settings):
        calls.append(all(torch.equal(p, start.get_parameter(n)) for n, p in model.named_parameters()))
        return reference(model, inputs, settings)

    fresh = copy.deepcopy(start)
    unlearn(
        fresh,
        processor,
        method=replace(method, retain_reference=recorded),
        forget=pictured[:2],
        retain=pictured[2:],
        settings=method.settings(**SETTINGS),
        config=TrainingConfig(batch_size=2),
    )
    assert calls and all(calls)


def test_the_target_has_the_length_of_the_state(model, processor, pictured):
    settings = METHODS["mip_editor"].settings(**SETTINGS, scale=3.0)
    batch = Encoder(processor, pictured[:2]).batch([0, 1])
    with torch.no_grad():
        values = METHODS["mip_editor"].forget_reference(model, batch, settings)
        loss = METHODS["mip_editor"].forget_loss(model, Batch(batch, values, seed=4), settings).loss
    u = mip_editor.direction(32, 4)
    assert u.norm().item() == pytest.approx(1.0) and bool((u < 0).any())
    expected = [((h - 3.0 * h.norm(dim=1, keepdim=True) * u) ** 2).sum(dim=1).mean() for h in values]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_bad_input_before_training(model, processor, pictured, written):
    before = weights(model)
    for values, forget, error_type, words in (
        ({"layer": 3}, pictured[:2], ModelError, ["layer is 3", "1 to 2"]),
        ({"neurons_per_layer": 200}, pictured[:2], ModelError, ["neurons_per_layer is 200"]),
        ({}, written[:2], DataError, ["picture"]),
    ):
        with pytest.raises(error_type) as error:
            run(model, processor, forget, [*pictured[2:], *written[2:]], **values)
        assert all(word in str(error.value) for word in words)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
