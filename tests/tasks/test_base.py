"""Stage base with a model that exists, and `python -m tasks inspect`."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.builders import FAMILIES, build_tiny
from efface.errors import ModelError
from efface.models import load_model, save_model, weights_digest
from tasks import base, inspect
from tasks.params import load_params


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "llava"
    model, processor = build_tiny("llava")
    save_model(model, processor, folder)
    return folder, model


def with_source(source, **changes):
    params = load_params()
    return params.model_copy(
        update={"base": params.base.model_copy(update={"source": str(source), **changes})}
    )


def test_a_model_that_exists_is_pointed_to_with_its_settings(made, tmp_path):
    folder, model = made
    base.run(with_source(folder, dtype="float32"), root=tmp_path)
    record = json.loads((tmp_path / "models" / "base" / "model.json").read_text())
    assert record == {"id": str(folder), "dtype": "float32", "trust_remote_code": False}
    assert weights_digest(load_model(tmp_path / "models" / "base").model) == weights_digest(model)
    summary = json.loads((tmp_path / "runs" / "base.json").read_text())["summary"]
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())


def test_what_cannot_be_worked_with_is_refused_before_anything_is_written(made, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=10).save_pretrained(tmp_path / "text")
    with pytest.raises(ModelError, match="is a 'llama' model, which does not answer questions"):
        base.run(with_source(tmp_path / "text"), root=tmp_path)
    assert not (tmp_path / "models").exists()


def test_inspect_counts_what_is_there(made, capsys):
    folder, model = made
    inspect.run(load_params(), str(folder))
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    counts = {group: int(rows[group][2].replace(",", "")) for group in ("vision", "projector", "language")}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert rows["vision"][5:8] == ["3", "of", "24"] and rows["language"][5:8] == ["2", "of", "48"]
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
    assert float(text.split("unlearning")[1].split()[0]) > 5 * weights


def test_families_are_named_as_transformers_names_them():
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    known = {config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    assert set(FAMILIES) <= known
