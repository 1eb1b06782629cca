"""KVW against its definition sample by sample, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.errors import ModelError
from efface.neurons.retained import decoder_mlps, measure_retained
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.training.batch_source import EpochSampler
from efface.unlearning.unlearn import unlearn
from tests.efface.neurons.test_retained import slow_values
from tests.efface.unlearning.runs import weights


def run(model, processor, forget, retain, *, seed=0, statistic=None, **values):
    return unlearn(
        model,
        processor,
        method="kvw",
        forget=forget,
        retain=retain,
        statistic=statistic,
        settings=METHODS["kvw"].settings(**values),
        config=TrainingConfig(seed=seed),
    )


def test_the_weights_are_those_of_the_slow_way(model, processor, pictured, written):
    forget, retain, gamma = [*pictured[:2], written[0]], [*pictured[3:6], *written[3:6]], 0.5
    slow, mlps = copy.deepcopy(model), decoder_mlps(model)
    means = {}
    for mlp in mlps:
        values = torch.cat([slow_values(model, processor, sample, mlp)[0] for sample in retain])
        means[mlp.name] = values.abs().mean(dim=0)
    sampler = EpochSampler(forget, batch_size=1, seed=3)
    for position in range(len(forget)):
        (index,) = sampler.indices_at(position)
        factors = {}
        for mlp in mlps:
            used = slow_values(slow, processor, forget[index], mlp)[0].abs().mean(dim=0)
            excess = (torch.log(used + 1e-12) - torch.log(means[mlp.name] + 1e-12)).clamp(min=0)
            factors[mlp.down] = torch.exp(-gamma * excess)
        with torch.no_grad():
            for name, factor in factors.items():
                slow.get_submodule(name).weight.mul_(factor)
    run(model, processor, forget, retain, seed=3, gamma=gamma)
    for name, weight in weights(model).items():
        assert torch.allclose(weight, slow.get_parameter(name), atol=1e-6), name


def test_gamma_zero_is_the_identity_bit_for_bit(model, processor, pictured):
    before = weights(model)
    run(model, processor, pictured[:2], pictured[2:], gamma=0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_only_columns_that_the_forget_set_uses_more_shrink(model, processor, pictured):
    before = weights(model)
    statistic = measure_retained(model, processor, pictured[2:], batch_size=4)
    used = measure_retained(model, processor, pictured[:1], batch_size=1)
    run(model, processor, pictured[:1], [], statistic=statistic, gamma=0.3)
    for mlp in decoder_mlps(model):
        name = f"{mlp.down}.weight"
        more = used.mean_abs[mlp.name] > statistic.mean_abs[mlp.name]
        after, start = model.get_parameter(name), before.pop(name)
        assert 0 < int(more.sum()) < len(more)
        assert torch.equal(after[:, ~more], start[:, ~more])
        assert bool((after[:, more].abs() < start[:, more].abs()).any(dim=0).all())
    assert all(torch.equal(model.get_parameter(name), start) for name, start in before.items())


def test_the_order_of_the_batches_follows_the_seed(model, processor, pictured):
    twins = [copy.deepcopy(model) for _ in range(3)]
    for twin, seed in zip(twins, (0, 0, 1), strict=True):
        run(twin, processor, pictured[:3], pictured[3:], seed=seed, gamma=1.0)
    one, same, other = (weights(twin) for twin in twins)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_layers_outside_the_range_stay(model, processor, pictured):
    before = weights(model)
    run(model, processor, pictured[:2], pictured[2:], gamma=1.0, first_layer=2)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed == {f"{decoder_mlps(model)[1].down}.weight"}


def test_bad_input(model, processor, pictured):
    before = weights(model)
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured[:2], pictured[2:], last_layer=3)
    assert "1 to 3" in str(error.value)
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured[:2], [])
    assert "retain is empty" in str(error.value) and "statistic" in str(error.value)
    with pytest.raises(ValueError) as error:
        run(model, processor, [], pictured)
    assert "forget is empty" in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
