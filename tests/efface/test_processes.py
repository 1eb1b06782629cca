"""Two real processes, each with a share of the batches, measure what one process measures on all of them."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.encoding import Encoder
from efface.models import anatomy
from efface.neurons import activation_statistics
from efface.neurons.official_code import output_statistics, output_units
from efface.processes import share
from efface.saliency import fisher_diagonal, mean_gradient

TAU = 0.1


def measure(what, model, batches):
    """Results of one measurement as flat tensors by name."""
    parts = anatomy(model)
    if what == "fisher":
        return fisher_diagonal(model, batches, parameters=parts.maskable)
    if what == "batch fisher":
        return fisher_diagonal(model, batches, parameters=parts.maskable, unit="batch")
    if what == "gradient":
        return mean_gradient(model, batches, parameters=parts.maskable)
    if what == "activations":
        values = activation_statistics(model, batches, mlps=parts.mlps, active_above=TAU)
        fields = ("sum_abs", "sum_square", "active", "variance")
        counts = {f"{name}.count": torch.tensor(float(v.count)) for name, v in values.items()}
    else:
        values = output_statistics(model, batches, units=output_units(model, parts.mlps), active_above=TAU)
        fields = ("sum", "sum_abs", "sum_square", "active")
        counts = {f"{name}.count": v.count for name, v in values.items()}
    return counts | {f"{name}.{f}": getattr(v, f) for name, v in values.items() for f in fields}


def work(rank, store, what, model, batches, out):
    """One of two processes: joins the other, measures its share, writes the result."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        own_share = share(batches)
        assert len(own_share) == len(batches[rank::2])
        values = measure(what, model, own_share)
        save_file({name: value.contiguous() for name, value in values.items()}, out / f"{rank}.safetensors")
    finally:
        torch.distributed.destroy_process_group()


def together(tmp_path, what, model, batches):
    context = multiprocessing.get_context("fork")
    store = tmp_path / "store"
    started = [
        context.Process(target=work, args=(rank, store, what, model, batches, tmp_path)) for rank in (0, 1)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    alive = [process for process in started if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive and [process.exitcode for process in started] == [0, 0]
    return [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.fixture
def cases(processor, pictured, written):
    both = list(Encoder(processor, pictured + written).batches(3))  # of 3, 3, 2, with pictures and without
    apart = [batch for pair in zip(both[:3], both[3:], strict=True) for batch in pair]
    return {"uneven": both, "pictures to one, words to the other": apart, "nothing for one": both[:1]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by forking")
@pytest.mark.parametrize("case", ["uneven", "pictures to one, words to the other", "nothing for one"])
@pytest.mark.parametrize("what", ["fisher", "batch fisher", "gradient", "activations", "outputs"])
def test_two_processes_measure_what_one_does(tmp_path, model, cases, what, case):
    expected = measure(what, model, cases[case])
    for values in together(tmp_path, what, model, cases[case]):
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert (values[name] - value).abs().max() <= 1e-6 * max(1e-3, value.abs().max()), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by forking")
def test_no_samples_in_any_process_is_an_error_in_both(tmp_path, model, capfd):
    with pytest.raises(AssertionError):
        together(tmp_path, "fisher", model, [])
    assert capfd.readouterr().err.count("no samples") >= 2


def test_a_lone_process_takes_everything():
    assert share([3, 1, 2]) == [3, 1, 2]


def test_shares_of_an_encoders_batches_are_whole_batches_and_together_all(processor, pictured, written):
    encoder = Encoder(processor, pictured + written)
    everything = list(encoder.batches(3))
    shares = [list(encoder.batches(3, share=lambda parts, rank=rank: parts[rank::2])) for rank in (0, 1)]
    values = [shares[k % 2][k // 2] for k in range(len(everything))]
    assert sum(map(len, shares)) == len(everything)
    for shared, whole in zip(values, everything, strict=True):
        assert torch.equal(shared["input_ids"], whole["input_ids"])
