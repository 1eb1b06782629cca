"""The stages saliency and control on a tiny model: what they write, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from efface.data.samples import read_samples, write_samples
from efface.errors import ArtifactError, DataError, EffaceError
from efface.models import anatomy
from efface.saliency import load_mask
from tasks import control, saliency
from tasks.config.unlearning import Lora
from tasks.runtime.loading import load_for_training
from tests.efface.conftest import model, processor  # noqa: F401
from tests.tiny_root import make_root, params_with


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
    loose = [name for name in mask if "projector" not in name]
    assert all(mask[name].all() for name in loose)
    assert not all(mask[name].all() for name in mask if "projector" in name)
    assert set(metadata["density"]["groups"]) == {"projector"}  # what is not masked is not counted as kept


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_options_for_little_memory_give_the_same_mask(root, model, variant):  # noqa: F811
    path = root / "masks" / "saliency.safetensors"
    _, mask, _ = run(root, model, variant=variant)
    plain = path.read_bytes()
    run(root, model, variant=variant, sums="disk")
    assert path.read_bytes() == plain
    _, found, _ = run(root, model, variant=variant, both_in_one=True)
    weights = sum(entry.numel() for entry in mask.values())
    assert sum(int((found[name] != mask[name]).sum()) for name in mask) <= weights // 1000
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_controls_have_equal_counts_per_tensor(root, model, variant):  # noqa: F811
    params, mask, made = run(root, model, variant=variant, controls=["random", "magnitude"])
    for name in params.saliency.controls:
        control.run(params, name, root)
        found, metadata = load_mask(root / "masks" / f"{name}.safetensors", model=model)
        assert {k: int(v.sum()) for k, v in found.items()} == {k: int(v.sum()) for k, v in mask.items()}
        assert any(not torch.equal(found[k], mask[k]) for k in mask)
        assert metadata["control"] == name and metadata["density"] == made["density"]
    record = json.loads((root / "runs" / "control@random.json").read_text())
    assert record["inputs"].keys() == {"prepared", "vanilla", "mask"}


def test_the_record_does_not_change_with_the_controls(root, model):  # noqa: F811
    run(root, model, controls=["random"])
    assert "controls" not in json.loads((root / "runs" / "saliency.json").read_text())["params"]


def test_a_control_of_another_models_mask_is_refused(root, model, processor):  # noqa: F811
    params, *_ = run(root, model, controls=["random"])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(root / "models" / "vanilla")
    with pytest.raises(ArtifactError, match="made from other weights"):
        control.run(params, "random", root)


@pytest.mark.parametrize(("split", "label"), [("forget", "forget"), ("retain", "preserve")])
def test_an_empty_set_is_an_error(root, model, split, label):  # noqa: F811
    table = root / "prepared" / "samples.parquet"
    write_samples([s for s in read_samples(table) if s.split != split], table)
    with pytest.raises(DataError, match=f"the {label} set has no training sample"):
        run(root, model, variant="official_code", groups=["vision"])


def test_a_threshold_that_selects_nothing_is_an_error(root, model):  # noqa: F811
    with pytest.raises(
        EffaceError, match="no weight is 1e\\+30 times as salient .* lower saliency.threshold"
    ):
        run(root, model, threshold=1e30)
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
    loaded, _, _ = load_for_training(vanilla, lora, seed=params.seed)
    for name in ("saliency", "random"):
        mask, metadata = load_mask(root / "masks" / f"{name}.safetensors", model=loaded.model)
        trained = {key for key, p in loaded.model.named_parameters() if p.requires_grad}
        assert mask.keys() == trained and all("lora_" in key for key in mask)
        assert metadata["density"]["groups"].keys() == {"language"}
        # The factors begin as a zero update (B = 0), so the first gradient of A is zero.
        kept_a = any(bool(entry.any()) for key, entry in mask.items() if "lora_A" in key)
        assert kept_a is (variant == "official_code")
        assert any(bool(entry.any()) for key, entry in mask.items() if "lora_B" in key)
    with pytest.raises(ArtifactError, match="made from other weights"):
        other, _, _ = load_for_training(
            root / "models" / "vanilla", params.unlearn.lora, seed=params.seed + 1
        )
        load_mask(root / "masks" / "saliency.safetensors", model=other.model)
