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


def test_a_tower_without_mlp_blocks_is_refused(model):
    for layer in model.model.vision_tower.encoder.layers:
        layer.mlp = nn.Identity()
    with pytest.raises(ModelError, match=r"no MLP block found in the vision part .* is not supported"):
        anatomy(model)


def test_a_text_only_model_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=10
    )
    with pytest.raises(
        ModelError, match="expected exactly one vision tower|no text decoder beside a vision tower"
    ):
        anatomy(LlamaForCausalLM(config))


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
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    count, ours = done.stdout.split()[-2:]
    assert 1 <= int(count) <= 3 and ours == "False"


def test_a_digest_sees_every_weight(model):
    before = weights_digest(model)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight[3, 2] += 1e-6
    assert weights_digest(model) != before


def test_a_missing_folder_and_a_truncated_one_say_how_to_restore(model, processor, tmp_path):
    with pytest.raises(ModelError, match=r"is not a model folder: expected config.json"):
        load_model(tmp_path / "nothing")
    save_model(model, processor, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"m cannot be loaded .*dvc checkout"):
        load_model(tmp_path / "m")


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
