"""Zeroed neurons: the output is that of the model with these hidden activations forced to zero."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.models import anatomy
from efface.neurons import prune, select_highest, zero_neurons, zero_outputs
from efface.neurons.pruning import hold_at_zero, neuron_regions, output_regions


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_equals_forcing_the_activations_to_zero(model, processor, pictured, tower):
    batch = next(iter(Encoder(processor, pictured).batches(8)))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    mlp = next(mlp for mlp in anatomy(model).mlps if mlp.tower == tower)
    units = torch.tensor([0, 5, 17, 47])

    def force(module, args):
        hidden = args[0].clone()
        hidden[..., units] = 0
        return (hidden,)

    with torch.no_grad():
        before = model(**inputs).logits
        handle = model.get_submodule(mlp.down).register_forward_pre_hook(force)
        forced = model(**inputs).logits
        handle.remove()
        zero_neurons(model, {mlp.name: units})
        after = model(**inputs).logits
    real = batch["attention_mask"].bool()
    assert (after - forced)[real].abs().max() <= 1e-6 * forced.abs().max()
    assert (after - before)[real].abs().max() > 1e-3


def test_zeroes_columns_rows_and_bias_of_the_units_and_nothing_else(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = anatomy(model).mlps
    units = torch.tensor([3, 4])
    summary = zero_neurons(model, {blocks[0].name: units, blocks[-1].name: units})
    touched = {blocks[i].down + ".weight" for i in (0, -1)}
    touched |= {up + part for i in (0, -1) for up in blocks[i].up for part in (".weight", ".bias")}
    for name, parameter in model.named_parameters():
        changed = parameter != before[name]
        if name not in touched:
            assert not changed.any(), name
            continue
        expected = torch.zeros_like(changed)
        if name.rpartition(".")[0] in (blocks[0].down, blocks[-1].down):
            expected[:, units] = True
        else:
            expected[units] = True
        assert torch.equal(changed, expected), name
    assert summary.total == 4
    assert summary.pruned == {"vision": {0: 2, 1: 0}, "language": {0: 0, 1: 2}}
    assert summary.widths["vision"] == {0: 48, 1: 48}


def test_unknown_block_or_neuron_is_an_error(model):
    name = anatomy(model).mlps[0].name
    with pytest.raises(ValueError) as error:
        zero_neurons(model, {"nose": torch.tensor([0])})
    assert "'nose'" in str(error.value)
    with pytest.raises(ValueError) as error:
        zero_neurons(model, {name: torch.tensor([3, 48])})
    assert all(part in str(error.value) for part in (name, "47", "48"))


def test_prune_zeroes_the_highest_scores(model):
    generator = torch.Generator().manual_seed(0)
    scores = {mlp.name: torch.rand(mlp.width, generator=generator) for mlp in anatomy(model).mlps}
    summary = prune(model, scores, fraction=0.125)
    assert {tower: sum(layers.values()) for tower, layers in summary.pruned.items()} == {
        "vision": 12,
        "language": 12,
    }
    selection = select_highest(scores, fraction=0.125, units=anatomy(model).mlps)
    for mlp in anatomy(model).mlps:
        silent = ~model.get_parameter(f"{mlp.down}.weight").any(dim=0)
        expected = selection.get(mlp.name, torch.tensor([], dtype=torch.int64))
        assert torch.equal(silent.nonzero().flatten(), expected)


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_zeroed_outputs_equal_forcing_the_layers_output_to_zero(model, processor, pictured, tower):
    batch = next(iter(Encoder(processor, pictured).batches(8)))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    mlp = next(mlp for mlp in anatomy(model).mlps if mlp.tower == tower)
    units = torch.tensor([0, 5, 17, 31])

    def force(module, args, output):
        output = output.clone()
        output[..., units] = 0
        return output

    names = [*mlp.up, mlp.down]
    with torch.no_grad():
        handles = [model.get_submodule(name).register_forward_hook(force) for name in names]
        forced = model(**inputs).logits
        for handle in handles:
            handle.remove()
        summary = zero_outputs(model, dict.fromkeys(names, units))
        after = model(**inputs).logits
    real = batch["attention_mask"].bool()
    assert (after - forced)[real].abs().max() <= 1e-6 * forced.abs().max()
    assert summary.pruned[tower] == {0: 4 * len(names), 1: 0}
    assert summary.widths[tower][0] == 48 * len(mlp.up) + 32


def test_unknown_output_is_an_error(model):
    name = anatomy(model).mlps[0].down
    with pytest.raises(ValueError) as error:
        zero_outputs(model, {"nose": torch.tensor([0])})
    assert "'nose'" in str(error.value)
    with pytest.raises(ValueError) as error:
        zero_outputs(model, {name: torch.tensor([3, 32])})
    assert all(part in str(error.value) for part in (name, "31", "32"))


def train(model, batch):
    """Four steps of AdamW with weight decay."""
    from efface.encoding.answers import nll

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        nll(model, batch).backward()
        optimizer.step()


def all_zero(regions):
    return all(not parameter[index].any() for parameter, index in regions)


def test_regions_held_at_zero_stay_exactly_zero_through_training(model, processor, pictured):
    mlps = anatomy(model).mlps
    outputs = {mlps[0].down: torch.tensor([1, 7]), mlps[-1].up[0]: torch.tensor([0, 47])}
    neurons = {mlps[1].name: torch.tensor([2, 3])}
    zero_outputs(model, outputs)
    zero_neurons(model, neurons)
    regions = output_regions(model, outputs) + neuron_regions(model, neurons)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = next(iter(Encoder(processor, pictured).batches(8)))
    with hold_at_zero(regions):
        train(model, batch)
    assert all_zero(regions)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {f"{mlps[0].down}.weight", f"{mlps[-1].up[0]}.weight", "lm_head.weight"} <= changed
    # Without the hold the same training brings them back, and the hooks are gone.
    train(model, batch)
    assert not all_zero(regions)
