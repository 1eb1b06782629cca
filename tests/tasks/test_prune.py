"""The stages importance and prune on a tiny model: one importance file, many prunings, no forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from efface.data.samples import read_samples, write_samples
from efface.errors import ArtifactError, DataError
from efface.models import anatomy, load_model
from efface.neurons.importance import load_importance
from tasks import importance, prune
from tests.efface.conftest import model, processor, sample  # noqa: F401
from tests.tiny_project import make_root, params_with

PLAIN = {"selection": "importance", "fraction": 0.125, "scope": "tower", "layers": "all"}


@pytest.fixture
def root(tmp_path, model, processor):  # noqa: F811
    return make_root(tmp_path, model, processor)


def measured(root, **changes):
    importance.run(params_with("importance", batch_size=4, **changes), root)
    return load_importance(root / "masks" / "importance.safetensors")


def pruned(root, **changes):
    """What pruning says and the weights it leaves."""
    params = params_with("prune")
    method = type(params.prune.methods["manu"]).model_validate(PLAIN | changes)
    methods = {"manu": method}
    prune.run(
        params.model_copy(update={"prune": params.prune.model_copy(update={"methods": methods})}),
        "manu",
        root,
    )
    folder = root / "models" / "unlearned" / "manu"
    return json.loads((folder / "pruning.json").read_text()), load_model(folder, device="cpu").model


def test_several_fractions_and_rankings_from_one_file_without_a_forward_pass(root, model, monkeypatch):  # noqa: F811
    measured(root)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("a module was called"))
    counts, units = {}, {}
    for name, changes in {
        "small": {"fraction": 0.0625},
        "plain": {},
        "random": {"selection": "random"},
        "activation": {"selection": "activation"},
        "no_retain": {"selection": "no_retain"},
        "var": {"selection": "var"},
        "language": {"layers": {"language": [1, 1]}},
    }.items():
        about, _ = pruned(root, **changes)
        counts[name] = {tower: sum(of.values()) for tower, of in about["pruned"].items()}
        units[name] = about["units"]
    assert counts["small"] == {"vision": 6, "language": 6}
    assert counts["plain"] == counts["random"] == counts["activation"] == {"vision": 12, "language": 12}
    assert counts["language"] == {"vision": 0, "language": 12}
    assert len({json.dumps(by_module) for by_module in units.values()}) == len(units)
    assert {k: len(v) for k, v in units["random"].items()} == {k: len(v) for k, v in units["plain"].items()}


def test_the_folder_says_what_was_forgotten(root):
    measured(root)
    pruned(root)
    card = (root / "models" / "unlearned" / "manu" / "README.md").read_text(encoding="utf-8")
    assert "made to forget 2 people by `manu`" in card and "| fraction | `0.125` |" in card
    assert "fictitious/" not in card and "data/runs/prune@manu.json" in card


def test_paper_zeroes_the_selected_neurons(root, model):  # noqa: F811
    measured(root)
    about, after = pruned(root)
    for mlp in anatomy(after).mlps:
        units = about["units"].get(mlp.name, [])
        silent = ~after.get_parameter(f"{mlp.down}.weight").any(dim=0)
        assert silent.nonzero().flatten().tolist() == units


def test_variance_only_needs_no_grey_picture(root):
    blank, *_ = measured(root)
    alone, units, _ = measured(root, vision_text_reference="variance_only")
    seeing = [unit.name for unit in units if unit.tower == "vision"]
    for name in seeing:
        spread = alone["forget.multimodal.variance"][name].sqrt()
        assert torch.allclose(alone["importance.forget"][name], spread, atol=1e-6)
        assert not torch.allclose(blank["importance.forget"][name], spread, atol=1e-3)
    speaking = [unit.name for unit in units if unit.tower == "language"]
    assert all(torch.equal(alone["score"][name], blank["score"][name]) for name in speaking)
    with pytest.raises(ValueError) as error:
        pruned(root, selection="abs")
    assert "no abs" in str(error.value)


def test_official_code_zeroes_output_rows(root):
    _, units, metadata = measured(root, variant="official_code")
    assert metadata["variant"] == "official_code"
    assert {unit.name.rpartition(".")[2] for unit in units} >= {"fc1", "fc2", "down_proj"}
    about, after = pruned(root, fraction=0.1)
    assert about["pruned"].keys() == {"vision", "language"}
    for unit in units:
        dead = ~after.get_parameter(f"{unit.name}.weight").any(dim=1)
        assert dead.nonzero().flatten().tolist() == about["units"].get(unit.name, [])
    total = sum(unit.width for unit in units if unit.tower == "vision")
    assert sum(about["pruned"]["vision"].values()) == round(0.1 * total)


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_recovery_trains_everything_but_what_was_pruned(root, model, variant):  # noqa: F811
    measured(root, variant=variant)
    about, bare = pruned(root)
    recovery = {"steps": 3, "learning_rate": 1e-2, "batch_size": 4}
    again, after = pruned(root, recovery=recovery)
    assert again["units"] == about["units"]
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, bare.get_parameter(name))}
    assert "lm_head.weight" in moved
    for mlp in anatomy(after).mlps:
        for name in (*mlp.up, mlp.down):
            key, dim = f"{name}.weight", 1
            if variant == "paper" and name == mlp.down:
                dim = 0
            silent = ~bare.get_parameter(key).any(dim=dim)
            assert torch.equal(~after.get_parameter(key).any(dim=dim), silent), key
            assert key in moved
    record = json.loads((root / "runs" / "prune@manu.json").read_text())
    assert len(record["history"]) == 3 and "prepared" in record["inputs"]


def test_other_weights_are_refused(root, model, processor):  # noqa: F811
    measured(root)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(root / "models" / "vanilla")
    with pytest.raises(ArtifactError) as error:
        pruned(root)
    assert "importance.safetensors" in str(error.value)


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_an_empty_set_is_an_error(root, split):
    table = root / "prepared" / "samples.parquet"
    forgotten = {s.entity_id for s in read_samples(table.parent, split=split)}
    write_samples([s for s in read_samples(table) if s.entity_id not in forgotten], table)
    with pytest.raises(DataError) as error:
        measured(root)
    assert f"the {split} set" in str(error.value)


def test_the_file_holds_float32(root):
    measured(root)
    tensors = load_file(root / "masks" / "importance.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("selection", ["importance", "random"])
def test_a_curve_goes_over_the_fractions_and_changes_no_weight(root, selection):
    measured(root)
    _, plain = pruned(root, selection=selection)
    params = params_with("prune")
    method = type(params.prune.methods["manu"]).model_validate(PLAIN | {"selection": selection})
    curve = {"every": 1, "questions": 3}
    unlearn = type(params.unlearn).model_validate(params.unlearn.model_dump() | {"curve": curve})
    params = params.model_copy(
        update={"prune": params.prune.model_copy(update={"methods": {"manu": method}}), "unlearn": unlearn}
    )
    facts = read_samples(root / "prepared", part="train")
    questions = [
        sample(i, part="test", set="forget" if i < 2 else "retain", sample_id=f"t{i}", task="qa")
        for i in range(8)
    ]
    write_samples([*facts, *questions], root / "prepared" / "samples.parquet")
    prune.run(params, "manu", root)
    points = json.loads((root / "runs" / "prune@manu.json").read_text())["summary"]["curve"]
    assert [point["fraction"] for point in points] == pytest.approx([0.125 * i / 6 for i in range(7)])
    assert all(0 <= point[key] <= 1 for point in points for key in ("forget_known", "retain_known"))
    again = load_model(root / "models" / "unlearned" / "manu", device="cpu").model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in plain.state_dict().items())
