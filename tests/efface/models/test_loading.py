"""Loading from folders, shards, adapters and pointers; what does not fit is refused with what to do."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from efface import sandbox
from efface.encoding import Encoder, prompt_of
from efface.errors import DataError, ModelError
from efface.models import anatomy, load_model, save_model, weights_digest
from efface.models.loading import Source, best_attention, resolve, write_pointer
from tests.efface.conftest import SHAPE
from tests.models.tokens import build_tokenizer


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


def test_shards_give_the_same_weights(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    processor.save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    assert weights_digest(load_model(tmp_path / "m").model) == weights_digest(model)


def test_dtype_and_attention_are_as_asked(folder):
    loaded = load_model(folder, dtype="bfloat16", attention="eager").model
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.config._attn_implementation == "eager"
    assert load_model(folder).model.config._attn_implementation == "sdpa"


def test_flash_attention_is_taken_only_where_it_can_run(monkeypatch):
    assert best_attention("bfloat16", "cuda") is None  # not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert best_attention("bfloat16", "cuda:0") == "flash_attention_2"
    assert best_attention("float32", "cuda") is None
    assert best_attention("bfloat16", "cpu") is None


def test_an_adapter_is_merged_into_its_base(folder, model, processor, pictured, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(load_model(folder).model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    batch = Encoder(processor, pictured).batch(range(4))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        expected, before = adapted.eval()(**inputs).logits, model(**inputs).logits
        loaded = load_model(tmp_path / "adapter")
        found = loaded.model(**inputs).logits
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)
    assert [n for n, _ in loaded.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    anatomy(loaded.model)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="names no base model"):
        load_model(tmp_path / "adapter")


def test_a_pointer_leads_to_the_model_with_all_its_options(folder, model, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("Question: {{ messages[0]['content'][-1]['text'] }}")
    source = Source(str(folder), dtype="float32", attention="eager", chat_template=str(template))
    (tmp_path / "base").mkdir()
    write_pointer(source, tmp_path / "base")
    copied = str(tmp_path / "base" / "chat.jinja")
    assert resolve(tmp_path / "base") == replace(source, chat_template=copied)
    template.unlink()
    loaded = load_model(tmp_path / "base")
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.processor.chat_template == Path(copied).read_text()
    assert weights_digest(loaded.model) == weights_digest(model)
    assert loaded.source == str(folder)
    (tmp_path / "base" / "model.json").write_text('{"id": "x", "revison": "main"}')
    with pytest.raises(ModelError, match=r"model.json has an unknown key 'revison'"):
        load_model(tmp_path / "base")


def test_the_revision_reaches_the_hub_client(monkeypatch):
    seen = {}

    def from_pretrained(source, **options):
        seen.update(options, source=source)
        raise OSError("no network here")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match="some/model cannot be loaded .*check the id and revision"):
        load_model(Source("some/model", revision="abc123"))
    assert seen == {"source": "some/model", "revision": "abc123", "trust_remote_code": False}


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_weights_are_spread_over_devices_as_asked(folder, model, processor, pictured, device_map):
    loaded = load_model(folder, device_map=device_map).model
    assert {str(p.device) for p in loaded.parameters()} == {"cpu"}  # the one device there is
    assert weights_digest(loaded) == weights_digest(model)
    inputs = Encoder(processor, pictured).batch(range(2))
    inputs.pop("labels")
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5)


def test_code_that_comes_with_a_model_runs_only_if_allowed(folder, tmp_path):
    """A model type of its own, whose code leaves a trace when it is run."""
    trace = tmp_path / "ran"
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnConfig(LlavaConfig):\n    model_type = 'own_llava'\n"
        "class OwnModel(LlavaForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    config |= {"model_type": "own_llava", "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"read that code, then set `base.trust_remote_code: true`"):
        load_model(folder)
    assert not trace.exists()
    loaded = load_model(folder, trust_remote_code=True)
    assert trace.exists() and type(loaded.model).__name__ == "OwnModel"
    anatomy(loaded.model)


def test_a_system_turn_is_written_into_the_template_and_saved(folder, processor, tmp_path):
    template = "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] if p['type'] == 'text' %}"
    template += "{{ p['text'] }}{% endfor %} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    loaded = load_model(folder, system="Be brief .")
    assert prompt_of(loaded.processor, "Who?", image=False) == "system: Be brief . user: Who? "
    save_model(loaded.model, loaded.processor, tmp_path / "saved")
    again = load_model(tmp_path / "saved").processor
    assert prompt_of(again, "Who?", image=True) == "system: Be brief . user: Who? "
    write_pointer(Source(str(folder), system="Be brief ."), tmp_path)
    assert load_model(tmp_path).processor.chat_template == again.chat_template


def test_a_template_without_system_turns_is_refused_one(folder):
    with pytest.raises(ModelError, match=r"writes no system turn .*`base.system` is 'Be brief.'; set it to"):
        load_model(folder, system="Be brief.")  # the sandbox's template writes every other role as ASSISTANT
    refusing = "{% if messages[0]['role'] == 'system' and messages[1]['content'][0]['type'] == 'image' %}"
    refusing += "{{ raise_exception('not beside pictures') }}{% endif %}{{ messages }}"
    (folder / "chat_template.jinja").write_text(refusing)
    with pytest.raises(ModelError, match="no system turn before questions with a picture"):
        load_model(folder, system="Be brief.")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ModelError, match="no chat template to write a system turn with.*`base.chat_template`"
    ):
        load_model(folder, system="Be brief.")


def test_quantised_loading_says_what_it_needs(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(ModelError, match=r"loading in 4bit needs bitsandbytes \(pip install 'efface\[quanti"):
        load_model(folder, device="cpu", quantization="4bit")
    with pytest.raises(ModelError, match="quantization is '3bit': expected 4bit or 8bit"):
        load_model(folder, quantization="3bit")


def test_a_language_model_and_a_pair_of_encoders_are_refused(tmp_path):
    from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=10, **small)).save_pretrained(tmp_path / "text")
    tower = {**small, "image_size": 16, "patch_size": 8}
    pair = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 10}, vision_config=tower))
    pair.save_pretrained(tmp_path / "pair")
    for name, kind in (("text", "llama"), ("pair", "clip")):
        with pytest.raises(ModelError, match=rf"is a '{kind}' model, which does not answer.*choose a"):
            load_model(tmp_path / name)
    with pytest.raises(ModelError, match="CLIPModel has no text decoder .* not a language model or a pair"):
        anatomy(pair)


def test_two_candidate_towers_are_named(model):
    model.model.second_tower = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Linear(8, 8))
    with pytest.raises(ModelError, match=r"exactly one vision tower .*vision_tower, model.second_tower"):
        anatomy(model)


def test_a_processor_of_another_model_is_refused(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "m")
    for change, reason in (
        (
            {"tokenizer": build_tokenizer(["<x>", "<image>"], size=500)},
            r"tokens go up to 499, the model has",
        ),
        ({"tokenizer": build_tokenizer(["<x>", "<image>"], corpus=["red"])}, "picture token has the id 5"),
        ({"patch_size": 4}, "cuts patches of 4 pixels, the model of 8"),
    ):
        tokenizer = change.get("tokenizer", processor.tokenizer)
        other = sandbox.build_processor(tokenizer, **(SHAPE | {"patch_size": change.get("patch_size", 8)}))
        other.save_pretrained(tmp_path / "m")
        with pytest.raises(ModelError, match=f"does not belong to the model: .*{reason}"):
            load_model(tmp_path / "m")


def test_a_tokenizer_without_padding_token_names_the_option(folder, processor, pictured):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no padding token.*`base.pad_token`.*'</s>'"):
        load_model(folder)
    assert load_model(folder, pad_token="<unk>").processor.tokenizer.pad_token == "<unk>"
    with pytest.raises(ModelError, match="pad_token is '<none>', which is no token"):
        load_model(folder, pad_token="<none>")
    bare = load_model(folder, pad_token="<unk>").processor
    bare.tokenizer.pad_token = None
    with pytest.raises(DataError, match=r"no padding token.*`base.pad_token`"):
        Encoder(bare, pictured).batch([0, 1])


def test_a_missing_chat_template_names_the_option_and_a_wrong_path_is_refused(folder, pictured):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match=r"no chat template.*`base.chat_template`"):
        Encoder(load_model(folder).processor, pictured).batch([0])
    with pytest.raises(ModelError, match="chat_template is 'nowhere.jinja': there is no such file"):
        load_model(folder, chat_template="nowhere.jinja")
