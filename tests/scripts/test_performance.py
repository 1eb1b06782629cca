"""The slow ways that scripts.performance times compute what the library computes."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.models import anatomy
from efface.neurons import activation_statistics
from efface.saliency import fisher_diagonal
from scripts.performance import Clock, ratio, released_fisher, released_statistics, single_sample_fisher
from tests.efface.conftest import model, pictured, processor  # noqa: F401


def test_the_loop_gives_the_sum_of_squares(model, processor, pictured):  # noqa: F811
    batches, names = list(Encoder(processor, pictured).batches(4)), anatomy(model).maskable
    sums = single_sample_fisher(model, batches, names)
    for name, mean in fisher_diagonal(model, batches, parameters=names).items():
        assert torch.allclose(sums[name] / len(pictured), mean, rtol=1e-3, atol=1e-6 * float(mean.max())), (
            name
        )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_released_way_squares_batches_of_four(model, processor, pictured):  # noqa: F811
    (batch,) = Encoder(processor, pictured).batches(8)
    fours = [{key: value[i : i + 4] for key, value in batch.items()} for i in (0, 4)]
    names = anatomy(model).maskable
    sums = released_fisher(model, [batch])
    for name, mean in fisher_diagonal(model, fours, parameters=names, unit="batch").items():
        assert torch.allclose(sums[name] / 2, mean, rtol=1e-3, atol=1e-6 * float(mean.max())), name


def test_the_released_statistics_are_those_of_tokens(model, processor, pictured):  # noqa: F811
    mlps = anatomy(model).mlps
    batches = list(Encoder(processor, pictured[:1]).batches(1))
    by_token = released_statistics(model, batches, mlps)
    by_sample = activation_statistics(model, batches, mlps=mlps, active_above=0.1)
    name = mlps[-1].name
    # Of a mean over tokens the absolute value is at most the mean of absolute values.
    assert (by_sample[name].mean_abs <= by_token["abs"][name] + 1e-6).all()
    assert (by_token["rms"][name] + 1e-6 >= by_token["abs"][name]).all() and by_token["freq"][name].max() <= 1


def test_ratios_are_of_the_same_round():
    assert ratio({"a": [1.0, 10.0, 3.0], "b": [0.5, 5.0, 1.0]}, "a", "b") == ("2 x", "2 to 3")


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_job_runs_in_every_round_and_once_before(rounds):
    order = []
    seconds = Clock("cpu", rounds).seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert "".join(order) == "baabba"[: 2 * rounds + 2]
    assert [len(of) for of in seconds.values()] == [rounds, rounds]
