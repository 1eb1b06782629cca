"""Rankings, shares, scopes and layers: which units go."""

from __future__ import annotations

import pytest
import torch

from efface.models import anatomy
from efface.neurons import relative_importance, select_highest, select_neurons
from efface.neurons.official_code import relative_excess
from efface.neurons.selection import random_neurons, ranking
from efface.neurons.statistics import Units, neuron_units


def scores(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {mlp.name: torch.rand(mlp.width, generator=generator) for mlp in anatomy(model).mlps}


@pytest.mark.parametrize(("scope", "pools"), [("tower", 2), ("global", 1), ("layer", 4)])
def test_selection_takes_the_top_share_of_each_pool(model, scope, pools):
    mlps = anatomy(model).mlps
    forget, retain = scores(model, 0), scores(model, 1)
    selection = select_neurons(forget, retain, fraction=0.125, scope=scope, mlps=mlps)
    assert sum(map(len, selection.values())) == pools * round(0.125 * sum(m.width for m in mlps) / pools)
    relative = relative_importance(forget, retain)
    groups = {}
    for mlp in mlps:
        key = {"tower": mlp.tower, "global": "", "layer": mlp.name}[scope]
        units = selection.get(mlp.name, torch.empty(0, dtype=torch.int64))
        inside = torch.zeros(mlp.width, dtype=torch.bool)
        inside[units] = True
        pair = groups.setdefault(key, ([], []))
        pair[0].append(relative[mlp.name][inside])
        pair[1].append(relative[mlp.name][~inside])
    for selected, rest in groups.values():
        assert torch.cat(selected).min() >= torch.cat(rest).max()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_out_of_range(model, fraction):
    with pytest.raises(ValueError) as error:
        select_neurons(scores(model, 0), scores(model, 1), fraction=fraction, scope="global")
    assert "fraction" in str(error.value) and str(fraction) in str(error.value)


def test_a_fraction_that_selects_nothing_is_an_error(model):
    with pytest.raises(ValueError) as error:
        select_neurons(scores(model, 0), scores(model, 1), fraction=0.001, scope="global")
    assert "fraction 0.001" in str(error.value)


def test_random_control_has_equal_counts_per_mlp(model):
    mlps = anatomy(model).mlps
    selection = select_neurons(scores(model, 0), scores(model, 1), fraction=0.2, scope="tower", mlps=mlps)
    random = random_neurons(selection, {mlp.name: mlp.width for mlp in mlps}, seed=0)
    assert {name: len(units) for name, units in random.items()} == {
        name: len(units) for name, units in selection.items()
    }
    assert any(not torch.equal(random[name], selection[name]) for name in selection)
    assert all(len(set(units.tolist())) == len(units) for units in random.values())


def six_layers(tower, width=10):
    return [Units(f"{tower}.{i}", tower, i, width) for i in range(6)]


@pytest.fixture
def ranked():
    """Two towers of six layers; later layers score higher, and language higher than vision."""
    units = six_layers("vision") + six_layers("language")
    return units, {u.name: torch.arange(u.width) + 100.0 * i for i, u in enumerate(units)}


@pytest.mark.parametrize(("third", "layers"), [("early", {0, 1}), ("middle", {2, 3}), ("late", {4, 5})])
@pytest.mark.parametrize("scope", ["tower", "global"])
def test_a_third_of_the_layers_gives_as_many_as_all(ranked, third, layers, scope):
    units, values = ranked
    free = select_highest(values, fraction=0.1, scope=scope, units=units)
    selection = select_highest(values, fraction=0.1, scope=scope, units=units, layers=third)
    assert sum(map(len, selection.values())) == sum(map(len, free.values())) == 12
    assert {int(name.split(".")[1]) for name in selection} <= layers
    towers = [name.split(".")[0] for name, picked in selection.items() for _ in picked]
    assert towers.count("vision") == (6 if scope == "tower" else 0)


def test_explicit_layers_leave_towers_that_are_not_named_alone(ranked):
    units, values = ranked
    selection = select_highest(values, fraction=0.2, units=units, layers={"language": (1, 2)})
    assert {name: len(picked) for name, picked in selection.items()} == {"language.1": 2, "language.2": 10}


def test_thirds_of_a_tower_that_three_does_not_divide():
    units = [Units(f"v{i}", "vision", i, 4) for i in range(5)]
    values = {u.name: torch.zeros(4) for u in units}
    selected = {
        third: set(select_highest(values, fraction=0.2, units=units, layers=third))
        for third in ("early", "middle", "late")
    }
    assert selected == {"early": {"v0"}, "middle": {"v2"}, "late": {"v4"}}  # of v0 v1, v2 v3, v4


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"layers": "early", "fraction": 0.5}, ["0.5 of the vision", "30 units", "have 20"]),
        ({"layers": {"language": (6, 9)}}, ["language tower", "6 to 9", "0 to 5"]),
        ({"layers": {"audio": (0, 1)}}, ["audio tower", "0 to 1", "none"]),
        ({"layers": "late", "scope": "layer"}, ["layer", "tower or global"]),
        ({"units": []}, ["tower of vision.0"]),
    ],
)
def test_impossible_layers_are_errors(ranked, options, parts):
    units, values = ranked
    with pytest.raises(ValueError) as error:
        select_highest(values, **({"fraction": 0.1, "units": units} | options))
    assert all(part in str(error.value) for part in parts)


def test_two_layers_have_no_last_third(model):
    with pytest.raises(ValueError) as error:
        select_highest(scores(model, 0), fraction=0.1, units=neuron_units(anatomy(model).mlps), layers="late")
    assert "vision tower" in str(error.value) and "late" in str(error.value)


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(0)
    names = ["importance.forget", "importance.retain", "score", "activation"]
    names += [f"terms.{kind}.{f}" for kind in ("forget", "retain") for f in ("abs", "freq", "var", "rms")]
    return {name: {"m": torch.rand(8, generator=generator)} for name in names}


def test_rankings(tables):
    t = {name: values["m"] for name, values in tables.items()}
    expected = {
        "importance": t["importance.forget"] / (t["importance.retain"] + 1e-8),
        "no_retain": t["importance.forget"],
        "activation": t["activation"],
    } | {f: t[f"terms.forget.{f}"] / (t[f"terms.retain.{f}"] + 1e-8) for f in ("abs", "freq", "var", "rms")}
    for by, value in expected.items():
        assert torch.allclose(ranking(tables, by)["m"], value), by


def test_rankings_of_the_official_code(tables):
    assert ranking(tables, "importance", variant="official_code") is tables["score"]
    var = ranking(tables, "var", variant="official_code")["m"]
    assert torch.allclose(var, tables["terms.forget.var"]["m"] / (tables["terms.retain.var"]["m"] + 1e-5) - 1)
    assert torch.equal(var, relative_excess(tables["terms.forget.var"], tables["terms.retain.var"])["m"])


def test_a_ranking_that_some_units_lack_is_an_error(tables):
    tables["importance.forget"]["v"] = torch.ones(3)
    with pytest.raises(ValueError) as error:
        ranking(tables, "rms")
    assert "v has no rms" in str(error.value) and "blank_image" in str(error.value)
    with pytest.raises(ValueError) as error:
        ranking(tables, "size")
    assert "'size'" in str(error.value) and "importance, activation" in str(error.value)
