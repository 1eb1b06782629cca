"""Masks in memory and on disk: the bits are the mask, and a file belongs to the model it was made from."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface import masks as module
from efface.errors import ArtifactError
from efface.masks import Masks, load_mask, pack, read_metadata, save_mask, unpack
from efface.models import anatomy, weights_digest
from efface.models.lora import weight_of

SHAPES = [(1,), (7,), (8,), (3, 5), (16, 9, 2), (0,)]


def random_bools(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_gives_the_mask_back_at_a_bit_per_weight(shape):
    mask = random_bools(*shape)
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, shape), mask)


@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_on_other_devices_gives_the_same(shape):
    mask = random_bools(*shape)
    assert torch.equal(module._unpack_on_device(pack(mask))[: mask.numel()].view(shape), mask)


def test_masks_are_a_mapping_of_bool_tensors():
    entries = {"a": random_bools(3, 5), "b": random_bools(9, seed=1)}
    masks = Masks(entries)
    assert masks.keys() == entries.keys() and "a" in masks and "c" not in masks
    assert all(torch.equal(masks[name], entries[name]) for name in entries)
    assert all(torch.equal(masks.to("cpu")[name], entries[name]) for name in entries)
    assert list(masks.subset(["b"])) == ["b"] and torch.equal(masks.subset(["b"])["b"], entries["b"])
    union = masks | Masks({"b": ~entries["b"], "c": entries["b"]})
    assert list(union) == ["a", "b", "c"]
    assert torch.equal(union["a"], entries["a"]) and torch.equal(union["b"], ~entries["b"])
    assert masks.any() and not Masks({"a": torch.zeros(3, dtype=torch.bool)}).any() and not Masks().any()


def test_changing_an_unpacked_entry_changes_no_mask():
    masks = Masks({"a": torch.ones(3, dtype=torch.bool)})
    masks["a"][:] = False
    assert masks["a"].all()


def test_density_counts_by_group_layer_and_kind(model):
    parts = anatomy(model)
    entries = {
        name: torch.zeros(model.get_parameter(name).shape, dtype=torch.bool) for name in parts.maskable
    }
    entries["model.language_model.layers.1.mlp.up_proj.weight"][:] = True
    density = Masks(entries).density(parts)
    sizes = {name: entry.numel() for name, entry in entries.items()}
    up = 48 * 32
    assert density["groups"]["vision"] == 0 and density["layers"]["language.0"] == 0
    language = sum(size for name, size in sizes.items() if "language_model" in name)
    assert density["groups"]["language"] == pytest.approx(up / language)
    assert density["kinds"]["up_proj"] == 0.5
    assert density["total"] == pytest.approx(up / sum(sizes.values()))
    assert Masks().density(parts)["total"] == 0


def test_factors_of_lora_count_for_the_weight_they_change(model):
    name = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.default.weight"
    density = Masks({name: torch.tensor([True, False])}).density(anatomy(model))
    assert density["groups"] == {"language": 0.5} and density["layers"] == {"language.1": 0.5}


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("base_model.model.model.x.q_proj.lora_A.default.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.lora_B.default.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.base_layer.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.base_layer.bias", "model.x.q_proj.bias"),
        ("model.embed_tokens.lora_embedding_A.default", "model.embed_tokens.weight"),
        ("model.x.q_proj.lora_magnitude_vector.default.weight", "model.x.q_proj.weight"),
    ],
)
def test_weight_of(name, weight):
    assert weight_of(name) == weight


@pytest.fixture
def entries(model):
    generator = torch.Generator().manual_seed(3)
    shapes = {name: model.get_parameter(name).shape for name in anatomy(model).maskable}
    return {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}


@pytest.fixture
def path(model, entries, tmp_path):
    path = tmp_path / "mask.safetensors"
    save_mask(entries, path, metadata={"variant": "paper", "model_digest": weights_digest(model)})
    return path


def test_round_trip(model, entries, path):
    masks, metadata = load_mask(path, model=model)
    assert metadata["variant"] == "paper" and metadata["kind"] == "saliency_mask"
    assert masks.keys() == entries.keys()
    assert all(torch.equal(masks[name], entries[name]) for name in entries)


def test_one_bit_per_weight_in_the_documented_order(entries, path):
    packed = load_file(path)
    for name, entry in entries.items():
        assert packed[name].numel() == -(-entry.numel() // 8)
        bits = [int(packed[name][i // 8]) >> (i % 8) & 1 for i in range(entry.numel())]
        assert bits == entry.reshape(-1).int().tolist()


def test_the_same_mask_gives_the_same_bytes(model, entries, path, tmp_path):
    again = tmp_path / "again.safetensors"
    save_mask(Masks(entries), again, metadata={"model_digest": weights_digest(model), "variant": "paper"})
    assert again.read_bytes() == path.read_bytes()


def test_other_weights_are_refused(model, path):
    old = weights_digest(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ArtifactError) as error:
        load_mask(path, model=model)
    assert old[:12] in str(error.value) and weights_digest(model)[:12] in str(error.value)


def test_other_shapes_are_refused(model, path):
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(32, 40, bias=True)
    with pytest.raises(ArtifactError) as error:
        load_mask(path, model=model)
    assert all(part in str(error.value) for part in ("linear_1.bias", "[32]", "[40]"))


@pytest.mark.parametrize("size", [0, 7, 200, -10])
def test_a_truncated_file_is_refused_by_name(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError) as error:
        load_mask(path)
    assert "mask.safetensors" in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"efface": json.dumps({"kind": "neuron_importance"})})
    with pytest.raises(ArtifactError) as error:
        load_mask(path)
    assert "'neuron_importance'" in str(error.value) and "'saliency_mask'" in str(error.value)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError) as error:
        read_metadata(path, kind="saliency_mask")
    assert "'efface'" in str(error.value)
