"""The slow ways that scripts.performance times compute what the engine computes."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.models import anatomy
from efface.neurons import activation_statistics
from efface.saliency import fisher_diagonal
from scripts.performance import recipes
from scripts.performance.__main__ import BEGIN, END, PAGE
from scripts.performance.memory import peaks
from scripts.performance.sizes import Subject
from scripts.performance.timing import Clock, Row, Timings, exponent, peak_mib


def test_the_loop_gives_the_sum_of_squares(model, processor, pictured):
    batches, names = list(Encoder(processor, pictured).batches(4)), anatomy(model).maskable
    found = recipes.one_sample_at_a_time(model, batches, names)
    for name, mean in fisher_diagonal(model, batches, parameters=names).items():
        assert torch.allclose(found[name] / len(pictured), mean, rtol=1e-3, atol=1e-6 * float(mean.max())), (
            name
        )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_released_way_squares_batches_of_four(model, processor, pictured):
    (batch,) = Encoder(processor, pictured).batches(8)
    fours = [{key: value[i : i + 4] for key, value in batch.items()} for i in (0, 4)]
    names = anatomy(model).maskable
    expected = fisher_diagonal(model, fours, parameters=names, unit="batch")
    found = recipes.released_fisher(model, [batch])
    for name in names:
        scale = 1e-6 * float(expected[name].max())
        assert torch.allclose(found[name] / 2, expected[name], rtol=1e-3, atol=scale), name


def test_the_released_statistics_are_those_of_tokens(model, processor, pictured):
    mlps = anatomy(model).mlps
    batches = list(Encoder(processor, pictured[:1]).batches(1))
    found = recipes.released_statistics(model, batches, mlps)
    measured = activation_statistics(model, batches, mlps=mlps, active_above=0.1)
    name = mlps[-1].name
    # Of a mean over tokens the absolute value is at most the mean of absolute values.
    assert (measured[name].mean_abs <= found["abs"][name] + 1e-6).all()
    assert (found["rms"][name] + 1e-6 >= found["abs"][name]).all() and found["freq"][name].max() <= 1


def test_ratios_are_of_the_same_round():
    times = Timings({"a": [1.0, 10.0, 3.0], "b": [0.5, 5.0, 1.0]})
    row = times.row("a / b", "tiny", "a", "b", limit=1.9, note="more")
    assert row.value == 2.0 and row.note == "2 to 3; more" and row.met == "**no**"
    assert Row("c", "tiny", 5.0, "x", 4, at_most=False).met == "yes" and Row("c", "tiny", 5.0).met == ""
    assert row.line() == "| a / b | tiny | 2 x | <= 1.9 x | **no** | 2 to 3; more |"


def test_growth_is_a_power():
    assert round(exponent([10, 100, 1000], [3.0, 300.0, 30000.0]), 6) == 2


def test_memory_is_that_of_the_job():
    job = lambda: torch.ones(20 * 2**20)  # noqa: E731  # 80 MiB
    assert 75 < peak_mib(job, "cpu") < 120
    assert 75 < peak_mib(job, "cpu") < 120  # again, although the first one's is free now


@pytest.mark.slow
def test_a_fisher_pass_needs_its_sums_beside_the_activations():
    """With 16 layers, in MiB; gradients of all weights, or a copy of the sums, would be as much again."""
    found = peaks(Subject("100M", None, None, [], []), "cpu")
    assert 340 < found["sums"] < found["plain"] < found["loop"]
    assert found["sums"] < found["fisher"] <= found["kept"] + 1.1 * found["sums"]


def test_every_job_runs_in_every_round_and_once_before():
    order = []
    clock = Clock("cpu", 2)
    clock.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert "".join(order) == "baabba"


def test_the_page_has_a_place_for_the_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1 == text.count(END) and text.index(BEGIN) < text.index(END)
