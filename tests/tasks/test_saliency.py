"""The stages saliency and control on a tiny model: what they write, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from efface.errors import ArtifactError, ModelError
from efface.models import anatomy
from efface.saliency import load_mask
from tasks import control, saliency
from tasks.config.unlearning import Lora
from tasks.runtime.loading import load_for_training
from tests.efface.conftest import model, processor  # noqa: F401
from tests.tiny_project import make_root, params_with


@pytest.fixture
def root(tmp_path, model, processor):  # noqa: F811
    return make_root(tmp_path, model, processor)


def run(root, model, **changes):  # noqa: F811
    params = params_with("saliency", **changes)
    saliency.run(params, root)
    return params, *load_mask(root / "masks" / "saliency.safetensors", model=model)


def test_paper_masks_the_maskable_weights_alone(root, model):  # noqa: F811
    _, mask, metadata = run(root, model)
    assert list(mask) == sorted(anatomy(model).maskable)
    assert metadata["variant"] == "paper" and 0 < metadata["density"]["total"] < 1


def test_official_code_leaves_the_rest_unmasked(root, model):  # noqa: F811
    _, mask, metadata = run(root, model, variant="official_code", groups=["projector"])
    assert mask.keys() == {name for name, _ in model.named_parameters()}
    unmasked = [name for name in mask if "projector" not in name]
    assert all(mask[name].all() for name in unmasked)
    assert not all(mask[name].all() for name in mask if "projector" in name)
    assert set(metadata["density"]["groups"]) == {"projector"}  # what is not masked is not counted


def test_the_record_says_how_stable_the_mask_is(root, model):  # noqa: F811
    _, _, metadata = run(root, model, density=0.2, normalisation="per_group", storage="cpu")
    assert metadata["density"]["total"] == pytest.approx(0.2, abs=0.001)
    assert -1 <= metadata["stability"]["kappa"] <= 1
    record = json.loads((root / "runs" / "saliency.json").read_text())
    assert record["summary"] == {key: metadata[key] for key in ("density", "stability")}


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_controls_have_equal_counts_per_tensor(root, model, variant):  # noqa: F811
    params, mask, original = run(root, model, variant=variant, controls=["random", "magnitude"])
    for name in params.saliency.controls:
        control.run(params, name, root)
        changed, metadata = load_mask(root / "masks" / f"{name}.safetensors", model=model)
        assert {k: int(v.sum()) for k, v in changed.items()} == {k: int(v.sum()) for k, v in mask.items()}
        assert any(not torch.equal(changed[k], mask[k]) for k in mask)
        assert metadata["control"] == name and metadata["density"] == original["density"]
    record = json.loads((root / "runs" / "control@random.json").read_text())
    assert record["inputs"].keys() == {"prepared", "split", "vanilla", "mask"}


def test_the_record_does_not_change_with_the_controls(root, model):  # noqa: F811
    run(root, model, controls=["random"])
    assert "controls" not in json.loads((root / "runs" / "saliency.json").read_text())["params"]


def test_a_control_of_another_models_mask_is_refused(root, model, processor):  # noqa: F811
    params, *_ = run(root, model, controls=["random"])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(root / "models" / "vanilla")
    with pytest.raises(ArtifactError) as error:
        control.run(params, "random", root)
    assert "saliency.safetensors" in str(error.value)


def test_without_a_mask_nothing_is_written(root, model):  # noqa: F811
    with pytest.raises(ModelError):
        run(root, model, threshold=1e30, density=None)
    assert not (root / "masks" / "saliency.safetensors").exists()


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_with_lora_the_mask_is_about_the_factors(root, variant):
    shape = {
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.0,
        "components": ["language"],
        "keep_adapter": False,
        "quantization": None,
    }
    params = params_with("saliency", variant=variant, controls=["random"])
    params = params.model_copy(
        update={"unlearn": params.unlearn.model_copy(update={"lora": Lora.model_validate(shape)})}
    )
    saliency.run(params, root)
    control.run(params, "random", root)
    vanilla, lora = root / "models" / "vanilla", params.unlearn.lora
    loaded, _ = load_for_training(params, vanilla, lora=lora)
    for name in ("saliency", "random"):
        mask, metadata = load_mask(root / "masks" / f"{name}.safetensors", model=loaded.model)
        trained = {key for key, p in loaded.model.named_parameters() if p.requires_grad}
        assert mask.keys() == trained and all("lora_" in key for key in mask)
        assert metadata["density"]["groups"].keys() == {"language"}
        # B is zero at the start, so A has no gradient: its rows follow B's columns.
        assert any(bool(entry.any()) for key, entry in mask.items() if "lora_A" in key)
        assert any(bool(entry.any()) for key, entry in mask.items() if "lora_B" in key)
    with pytest.raises(ArtifactError):
        changed, _ = load_for_training(
            params.model_copy(update={"seed": params.seed + 1}), vanilla, lora=lora
        )
        load_mask(root / "masks" / "saliency.safetensors", model=changed.model)
