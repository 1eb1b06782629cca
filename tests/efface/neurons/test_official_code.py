"""The released code's statistics and score, against the rule written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.encoding import Encoder, encode
from efface.models import anatomy
from efface.neurons.official_code import (
    TokenStatistics,
    official_tables,
    output_statistics,
    output_units,
)

TAU = 0.1


def slow_outputs(model, processor, samples, unit):
    """Every token's output of one layer, (tokens, N) float64, from unpadded single-sample passes."""
    rows = []
    handle = model.get_submodule(unit.name).register_forward_hook(
        lambda module, args, output: rows.append(output[0].double().numpy())
    )
    for row in encode(processor, samples):
        with torch.no_grad():
            model(**{k: v for k, v in row.items() if k != "labels"})
    handle.remove()
    return np.concatenate(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(("tower", "kind"), [("vision", "pictured"), ("language", "written")])
def test_statistics_equal_a_two_pass_reference(model, processor, pictured, written, batch_size, tower, kind):
    samples = {"pictured": pictured, "written": written}[kind]
    units = [unit for unit in output_units(model, anatomy(model).mlps) if unit.tower == tower]
    batches = Encoder(processor, samples).batches(batch_size)
    measured = output_statistics(model, batches, units=units, active_above=TAU)
    assert measured.keys() == {unit.name for unit in units}
    for unit in units:
        a = slow_outputs(model, processor, samples, unit)
        expected = {
            "abs": np.abs(a).mean(0),
            "freq": (np.abs(a) > TAU).mean(0),
            "var": a.std(0),
            "rms": np.sqrt((a**2).mean(0)),
        }
        terms = measured[unit.name].terms()
        for name, value in expected.items():
            assert np.abs(terms[name].numpy() - value).max() <= 1e-5 * max(1, np.abs(value).max()), name


def test_units_are_the_outputs_of_every_layer_of_the_mlps(model):
    units = output_units(model, anatomy(model).mlps)
    ends = {(unit.tower, unit.name.rpartition(".")[2], unit.width) for unit in units}
    assert ends == {
        ("vision", "fc1", 48),
        ("vision", "fc2", 32),
        ("language", "gate_proj", 48),
        ("language", "up_proj", 48),
        ("language", "down_proj", 32),
    }


def test_only_the_last_three_layers_of_each_tower(processor):
    from efface import sandbox
    from tests.efface.conftest import SHAPE

    deep = sandbox.build_model(
        processor.tokenizer, **SHAPE, width=8, mlp_width=16, vision_layers=4, language_layers=5, heads=2
    )
    layers = {(unit.tower, unit.layer) for unit in output_units(deep, anatomy(deep).mlps)}
    assert layers == {("vision", i) for i in (1, 2, 3)} | {("language", i) for i in (2, 3, 4)}


def statistics(a):
    a = torch.as_tensor(a, dtype=torch.float64)
    size = a.abs()
    parts = (a.sum(0), size.sum(0), a.square().sum(0), (size > TAU).sum(0).double())
    return TokenStatistics(torch.full(a.shape[1:], float(len(a))), *parts)


def test_score_by_hand():
    # One unit: 1 and -3 on the forget set, 0 and 2 on the retain set.
    tables = official_tables({"m": statistics([[1.0], [-3.0]])}, {"m": statistics([[0.0], [2.0]])})
    ratios = {"abs": 2 / 1, "var": 2 / 1, "rms": 5**0.5 / 2**0.5}
    assert tables["score"]["m"].item() == pytest.approx(sum(2 * (r - 1) for r in ratios.values()), rel=1e-4)
    assert tables["importance.forget"]["m"].item() == pytest.approx(2 * (2 + 2 + 5**0.5))
    assert tables["activation"]["m"].item() == 2
    assert tables["terms.forget.freq"]["m"].item() == 1 and tables["terms.retain.freq"]["m"].item() == 0.5


def test_sets_alike_score_zero():
    same = {"m": statistics([[0.05], [0.4]])}
    assert official_tables(same, same)["score"]["m"].item() == pytest.approx(0, abs=1e-3)


def test_sets_that_reach_other_layers_are_refused():
    with pytest.raises(ValueError) as error:
        official_tables({"m": statistics([[1.0]]), "fc9": statistics([[1.0]])}, {"m": statistics([[1.0]])})
    assert "fc9" in str(error.value)


def test_no_samples_is_an_error(model):
    with pytest.raises(ValueError):
        output_statistics(model, [], units=output_units(model, anatomy(model).mlps), active_above=TAU)
