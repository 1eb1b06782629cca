"""Anatomy, loading and the sandbox model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from efface import sandbox
from efface.encoding import Encoder
from efface.errors import ModelError
from efface.models import anatomy, load_model, save_model, weights_digest


def test_groups_are_disjoint_and_together_everything(model):
    groups = anatomy(model).groups
    names = [name for group in groups.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert all("vision_tower" in name for name in groups["vision"])
    assert all("multi_modal_projector" in name for name in groups["projector"])
    assert "lm_head.weight" in groups["language"]


def test_mlps_of_both_towers_and_no_attention_or_projector(model):
    blocks = anatomy(model).mlps
    assert [(mlp.tower, mlp.layer) for mlp in blocks] == [
        (t, i) for t in ("vision", "language") for i in (0, 1)
    ]
    for mlp in blocks:
        assert mlp.width == 48 == model.get_submodule(mlp.down).in_features
        assert all(model.get_submodule(up).out_features == 48 for up in mlp.up)
        assert len(mlp.up) == (1 if mlp.tower == "vision" else 2)


def test_maskable_are_weights_and_biases_of_linear_and_convolution_without_the_head(model):
    names = set(anatomy(model).maskable)
    expected = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "lm_head":
            expected |= {f"{name}.{part}" for part, _ in module.named_parameters()}
    assert names == expected
    assert not any(word in name for name in names for word in ("norm", "embed_tokens", "position", "lm_head"))


def test_a_tower_without_mlp_blocks_is_refused_for_neurons_alone(model):
    anatomy(model).require_mlps()
    for layer in model.model.vision_tower.encoder.layers:
        layer.mlp = nn.Identity()
    parts = anatomy(model)
    assert parts.groups["vision"] and {mlp.tower for mlp in parts.mlps} == {"language"}
    with pytest.raises(ModelError) as error:
        parts.require_mlps()
    assert "vision" in str(error.value)


@pytest.mark.parametrize("read", [-1, -2, 1, [0, -2], [-3, -2]])
def test_what_no_answer_depends_on_is_left_out(model, processor, pictured, read):
    """Zeroing all that is named unused changes nothing; zeroing any other layer does."""
    model.config.vision_feature_layer = read
    if isinstance(read, list):  # features of several layers side by side
        model.model.multi_modal_projector.linear_1 = nn.Linear(64, 32)
    parts = anatomy(model)
    layers = "model.vision_tower.encoder.layers"
    last = read if isinstance(read, int) else max(read, key=lambda i: i % 3)
    assert list(parts.unused) == [f"{layers}.{i}" for i in range(last % 3, 2)]
    names = [*parts.maskable, *(mlp.name for mlp in parts.mlps)]
    assert not any(name.startswith(f"{unused}.") for name in names for unused in parts.unused)
    batch = Encoder(processor, pictured[:2]).batch([0, 1])
    batch.pop("labels")
    with torch.no_grad():
        before = model(**batch).logits
        for unused in parts.unused:
            for parameter in model.get_submodule(unused).parameters():
                parameter.zero_()
        assert torch.equal(model(**batch).logits, before)
        for mlp in parts.mlps:
            if mlp.tower == "vision":
                model.get_parameter(f"{mlp.down}.weight").add_(1)
                assert not torch.equal(model(**batch).logits, before)


def test_two_candidates_for_the_tower_are_named_where_transformers_names_none(model, monkeypatch):
    monkeypatch.setattr(type(model), "get_encoder", lambda self, modality=None: self)
    anatomy(model)
    model.model.second_tower = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Linear(8, 8))
    with pytest.raises(ModelError) as error:
        anatomy(model)
    assert "model.vision_tower" in str(error.value) and "model.second_tower" in str(error.value)


def test_a_text_only_model_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=10
    )
    with pytest.raises(ModelError) as error:
        anatomy(LlamaForCausalLM(config))
    assert "LlamaForCausalLM" in str(error.value)


def test_saved_model_gives_the_same_logits_through_the_auto_classes(model, processor, pictured, tmp_path):
    save_model(model, processor, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert weights_digest(loaded.model) == weights_digest(model)
    for source in (processor, loaded.processor):
        batch = Encoder(source, pictured).batch(range(8))
        with torch.no_grad():
            logits = loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
            expected = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        assert torch.equal(logits, expected)


def test_loads_and_answers_in_someone_elses_process(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "m")
    program = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
content = [{"type": "image"}, {"type": "text", "text": "Which colour does this person like?"}]
turn = [{"role": "user", "content": content}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
inputs = processor(text=prompt, images=Image.new("RGB", (40, 40)), return_tensors="pt")
new = model.generate(**inputs, max_new_tokens=3)[0, inputs["input_ids"].shape[1]:]
print("new tokens:", len(new), "efface" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    count, imported = process.stdout.split()[-2:]
    assert 1 <= int(count) <= 3 and imported == "False"


def test_a_digest_sees_every_weight(model):
    before = weights_digest(model)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight[3, 2] += 1e-6
    assert weights_digest(model) != before


def test_tokenizer_does_not_depend_on_the_order_of_the_corpus_and_knows_its_words():
    texts = ["What is this person's pet?", "Mara Velin keeps a pony.", "Complete: the pet is __."]
    one, two = sandbox.build_tokenizer(texts), sandbox.build_tokenizer(reversed(texts))
    assert one.get_vocab() == two.get_vocab()
    for text in texts:
        assert one.unk_token_id not in one(text).input_ids
    assert one.unk_token_id in one("zebra").input_ids
    assert (
        one.decode(one("Mara Velin keeps a pony.").input_ids, skip_special_tokens=True)
        == "Mara Velin keeps a pony."
    )


def test_vision_pretraining_learns_what_it_is_shown(model):
    from efface.sandbox.pretraining import pretrain_vision

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=generator)
    pixels = torch.randn(200, 3, 24, 24, generator=generator) * 0.5
    pixels[torch.arange(200), labels] += 1.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    accuracy = pretrain_vision(
        model,
        pixels,
        {"channel": [str(x) for x in labels.tolist()]},
        steps=60,
        learning_rate=2e-3,
        batch_size=32,
        seed=0,
    )
    assert accuracy["channel"] > 0.9
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "vision_tower" not in n)
