"""Stage base with a model that exists, and `python -m tasks inspect`."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

from efface.data.samples import write_samples
from efface.errors import DataError, ModelError
from efface.models import load_model, save_model, weights_digest
from tasks import base
from tasks.config import load_params
from tasks.runtime import inspect
from tests.efface.conftest import sample
from tests.models import FAMILIES, build_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "llava"
    model, processor = build_tiny("llava")
    save_model(model, processor, folder)
    return folder, model


def with_source(source, **changes):
    params = load_params()
    return params.model_copy(
        update={"base": params.base.model_copy(update={"source": str(source), **changes})}
    )


def test_a_model_that_exists_is_pointed_to_with_its_settings(saved, tmp_path):
    folder, model = saved
    base.run(with_source(folder, dtype="float32", system="Be brief."), root=tmp_path)
    record = json.loads((tmp_path / "models" / "base" / "model.json").read_text())
    assert record == {"id": str(folder), "dtype": "float32", "system": "Be brief."}
    assert weights_digest(load_model(tmp_path / "models" / "base").model) == weights_digest(model)
    summary = json.loads((tmp_path / "runs" / "base.json").read_text())["summary"]
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("files", ["adapter alone", "tokenizer with new tokens"])
def test_an_adapter_is_pointed_to_and_loads_with_weights_that_train(saved, tmp_path, files):
    from peft import LoraConfig, get_peft_model

    folder, _ = saved
    loaded = load_model(folder)
    tokenizer, adapter = loaded.processor.tokenizer, tmp_path / "adapter"
    if files != "adapter alone":
        tokenizer.add_tokens(["<new>"])
        loaded.model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(loaded.model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(folder)
    wrapped.save_pretrained(adapter, save_embedding_layers=files != "adapter alone")
    if files != "adapter alone":
        tokenizer.save_pretrained(adapter)
    base.run(with_source(adapter), root=tmp_path)
    again = load_model(tmp_path / "models" / "base")
    assert all(parameter.requires_grad for parameter in again.model.parameters())
    assert len(again.processor.tokenizer) == len(tokenizer)
    merged = weights_digest(wrapped.merge_and_unload())
    assert weights_digest(again.model) == merged != weights_digest(load_model(folder).model)


def test_samples_with_a_special_token_of_the_model_are_refused(saved, tmp_path):
    rows = [sample(0), sample(1, question="What is </s> this?"), sample(2)]
    write_samples(rows, tmp_path / "prepared" / "samples.parquet")
    with pytest.raises(DataError) as error:
        base.run(with_source(saved[0]), root=tmp_path)
    words = (rows[1].sample_id, rows[1].entity_id, "question", "'</s>'")
    assert not [word for word in words if word not in str(error.value)]
    assert not (tmp_path / "models").exists()
    write_samples([rows[0], rows[2]], tmp_path / "prepared" / "samples.parquet")
    base.run(with_source(saved[0]), root=tmp_path)


def test_what_cannot_be_worked_with_is_refused_before_anything_is_written(saved, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=10).save_pretrained(tmp_path / "text")
    with pytest.raises(ModelError) as error:
        base.run(with_source(tmp_path / "text"), root=tmp_path)
    assert str(tmp_path / "text") in str(error.value) and "'llama'" in str(error.value)
    bare = shutil.copytree(saved[0], tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(DataError) as error:
        base.run(with_source(bare), root=tmp_path)
    assert "chat_template" in str(error.value)
    assert not (tmp_path / "models").exists()


def test_inspect_counts_what_is_there(saved, capsys):
    folder, model = saved
    inspect.run(load_params(), str(folder))
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    counts = {group: int(rows[group][2].replace(",", "")) for group in ("vision", "projector", "language")}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    # The last vision layer is not read, so it has no neurons that count.
    assert rows["vision"][6:9] == ["2", "of", "24"] and rows["language"][6:9] == ["2", "of", "48"]
    assert {rows[group][4] for group in counts} == {"100.0%"}  # share that trains
    assert all(label in text for label in ("saliency", "unlearning", "pruning"))


def test_a_seven_billion_shape_is_inspected_without_weights(tmp_path, capsys):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(vocab_size=32064), dtype=torch.bfloat16
    )
    config.save_pretrained(tmp_path)
    inspect.run(load_params(), str(tmp_path))
    text = capsys.readouterr().out
    assert "7,06" in text.splitlines()[0] and "bfloat16" in text.splitlines()[0]
    weights = float(text.split("evaluation")[1].split()[0])
    assert 13.0 < weights < 13.3
    # In float32: weights, gradients of two terms, two moments; a bit per weight of the mask.
    assert 2 * 5 * weights < float(text.split("unlearning")[1].split()[0]) < 2 * 5.1 * weights


def test_with_lora_only_the_factors_count_beside_the_weights(saved, capsys):
    from efface.models import anatomy
    from efface.models.lora import Lora as Shape
    from efface.models.lora import add_lora
    from efface.models.memory import estimate_memory, lora_parameters
    from tasks.config.unlearning import Lora

    folder, model = saved
    parts, shape = anatomy(model), Shape(2, 4.0, components=("language", "vision"))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    linear = sum(sizes[name] for name in parts.maskable if name.endswith("weight") and "patch" not in name)
    counts = lora_parameters(model, parts, shape)
    whole, eight, four = (
        estimate_memory(model, parts, measured=[], lora=shape, quantization=bits)
        for bits in (None, "8bit", "4bit")
    )
    assert whole.unlearning - eight.unlearning == 3 * linear  # saved in float32
    assert whole.unlearning - four.unlearning == 3.5 * linear
    # Factors: weights, gradients of two terms, two moments in float32, and a bit of the mask.
    assert whole.unlearning == 4 * sum(sizes.values()) + 20 * sum(counts.values()) + sum(counts.values()) // 8
    assert whole.saliency == 4 * sum(sizes.values()) + 16 * sum(counts.values())
    settings = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "components": ["language", "vision"]}
    lora = Lora.model_validate(settings | {"keep_adapter": False, "quantization": "4bit"})
    params = load_params()
    unlearning = params.unlearn.model_copy(update={"lora": lora})
    inspect.run(params.model_copy(update={"unlearn": unlearning}), str(folder))
    text = capsys.readouterr().out
    assert "LoRA factors of rank 2 train, on weights 4bit" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["projector"][4:6] == ["0.0%", "0.0%"] and rows["language"][4] != "0.0%"
    changed = copy.deepcopy(model)
    add_lora(changed, shape, seed=0)
    real = {"vision": 0, "language": 0, "projector": 0}
    for name, parameter in changed.named_parameters():
        if parameter.requires_grad:
            real["vision" if "vision_tower" in name else "language"] += parameter.numel()
    assert counts == real


def test_families_are_named_as_transformers_names_them():
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    types = {config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    assert set(FAMILIES) <= types
