"""Loading from folders, shards and pointers; misfits are refused with a remedy."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface import sandbox
from efface.encoding import Encoder, prompt_of
from efface.errors import DataError, ModelError
from efface.models import Source, anatomy, load_model, save_model, weights_digest
from efface.models.loading import auto_class, best_attention
from efface.models.memory import meta_model
from efface.models.source import loading_error, resolve, write_pointer
from tests.efface.conftest import SHAPE
from tests.models.tokens import build_tokenizer


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def saved_name(folder):
    """Name of one down projection as the checkpoint spells it."""
    return next(name for name in load_file(folder / "model.safetensors") if "0.mlp.down_proj" in name)


def test_shards_give_the_same_weights(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    processor.save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    assert weights_digest(load_model(tmp_path / "m").model) == weights_digest(model)


def test_dtype_and_attention(folder):
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


def _drop(weights, name):
    del weights[name]


def _rename(weights, name):
    weights[f"{name}_old"] = weights.pop(name)


def _transpose(weights, name):
    weights[name] = weights[name].T.contiguous()


def _nan(weights, name):
    weights[name][0, 0] = torch.nan


def _infinite(weights, name):
    weights[name][-1] = torch.inf


def _add(weights, name):
    weights["model.extra.weight"] = torch.ones(2)


@pytest.mark.parametrize("change", [_drop, _rename, _transpose, _nan, _infinite, _add])
def test_weights_that_do_not_fit_are_named(folder, change, capfd):
    name = saved_name(folder)
    edit_weights(folder, lambda weights: change(weights, name))
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert ("model.extra.weight" if change is _add else "0.mlp.down_proj.weight") in str(error.value)
    if change is _rename:
        assert "down_proj.weight_old" in str(error.value)
    assert "\n" not in str(error.value)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.vision_model.embeddings.position_ids",
        "model.vision_tower.vision_model.head.probe",
        "model.language_model.layers.1.mlp._extra_state",
    ],
)
def test_tensors_that_no_model_needs_are_ignored(folder, model, name):
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(2)}))
    assert weights_digest(load_model(folder).model) == weights_digest(model)


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.2.mlp.down_proj.weight",
        "model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.vision_tower.vision_model.encoder.layers.0.mlp.fc3.bias",
    ],
)
def test_tensors_that_a_model_may_need_are_refused(folder, name):
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(2)}))
    with pytest.raises(ModelError, match=re.escape(name.split("layers.")[1])):
        load_model(folder)


@pytest.mark.parametrize("kind", ["t5gemma2", "florence2", "diffusion_gemma", "pi0", "evolla"])
def test_types_whose_answers_do_not_continue_the_prompt_are_refused(kind):
    from transformers import CONFIG_MAPPING

    with pytest.raises(ModelError, match=kind):
        auto_class(Source("someone/model"), CONFIG_MAPPING[kind]())


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("mistral4", "Mistral4ForCausalLM"),  # registered for pictures, and reads none
        ("shieldgemma2", "ShieldGemma2ForImageClassification"),
        ("qwen2_5_vl", "Qwen2_5_VLForSequenceClassification"),  # a reward model
        ("gemma3", "Gemma3ForSequenceClassification"),
    ],
)
def test_types_that_read_no_pictures_or_write_no_answers_are_refused(kind, architecture):
    from transformers import CONFIG_MAPPING

    with pytest.raises(ModelError, match=f"{kind}|{architecture}"):
        auto_class(Source("someone/model"), CONFIG_MAPPING[kind](architectures=[architecture]))


@pytest.mark.parametrize("kind", ["fuyu", "chameleon", "gemma4_unified"])
def test_models_that_read_pictures_without_a_tower_are_loaded(kind):
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    assert auto_class(Source("someone/model"), CONFIG_MAPPING[kind]()) is AutoModelForImageTextToText


def test_a_decoder_that_reads_from_an_encoder_of_its_own_is_refused():
    """BLIP-2 comes with OPT, which continues its prompt, and with T5, which does not."""
    from transformers import Blip2Config, OPTConfig, T5Config

    assert auto_class(Source("someone/opt"), Blip2Config(text_config=OPTConfig().to_dict()))
    with pytest.raises(ModelError, match="t5"):
        auto_class(Source("someone/t5"), Blip2Config(text_config=T5Config().to_dict()))


def test_a_config_with_another_number_of_layers_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for layers in (1, 3):
        edit_config(folder, text_config=config["text_config"] | {"num_hidden_layers": layers})
        with pytest.raises(ModelError) as error:
            load_model(folder)
        assert f"layers.{min(layers, 2)}." in str(error.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "compressed-tensors"])
def test_quantised_checkpoints_are_refused(folder, method):
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    for load in (load_model, lambda where: meta_model(Source(str(where)))):
        with pytest.raises(ModelError) as error:
            load(folder)
        assert "quantization_config" in str(error.value)


def test_a_pointer_leads_to_the_model_with_all_its_options(folder, model, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("Question: {{ messages[0]['content'][-1]['text'] }}")
    source = Source(str(folder), dtype="float32", attention="eager", chat_template=str(template))
    (tmp_path / "base").mkdir()
    write_pointer(source, tmp_path / "base")
    copy = str(tmp_path / "base" / "chat.jinja")
    assert resolve(tmp_path / "base") == replace(source, chat_template=copy)
    template.unlink()
    loaded = load_model(tmp_path / "base")
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.processor.chat_template == Path(copy).read_text()
    assert weights_digest(loaded.model) == weights_digest(model)
    assert loaded.source == str(folder)
    (tmp_path / "base" / "model.json").write_text('{"id": "x", "revison": "main"}')
    with pytest.raises(ModelError) as error:
        load_model(tmp_path / "base")
    assert "'revison'" in str(error.value) and "revision" in str(error.value)


def test_the_revision_reaches_the_hub_client(monkeypatch):
    options = {}

    def from_pretrained(source, **arguments):
        options.update(arguments, source=source)
        raise OSError("no network")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_pretrained)
    with pytest.raises(ModelError) as error:
        load_model(Source("some/model", revision="abc123"))
    assert "some/model" in str(error.value) and "revision" in str(error.value)
    assert options == {"source": "some/model", "revision": "abc123", "trust_remote_code": False}


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_weights_are_spread_over_devices(folder, model, processor, pictured, device_map):
    loaded = load_model(folder, device_map=device_map).model
    assert {str(p.device) for p in loaded.parameters()} == {"cpu"}  # the only device
    assert weights_digest(loaded) == weights_digest(model)
    inputs = Encoder(processor, pictured).batch(range(2))
    inputs.pop("labels")
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5)


def own_code(folder, model, trace, auto_class="AutoModelForImageTextToText"):
    """Give a folder a custom model type, whose code leaves a trace when it runs."""
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnConfig(LlavaConfig):\n    model_type = 'own_llava'\n"
        "class OwnModel(LlavaForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    code = {"AutoConfig": "own.OwnConfig", auto_class: "own.OwnModel"}
    edit_config(folder, model_type="own_llava", auto_map=code)


@pytest.mark.parametrize("auto_class", ["AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel"])
def test_code_that_comes_with_a_model_runs_only_if_allowed(folder, model, tmp_path, auto_class):
    trace = tmp_path / "ran"
    own_code(folder, model, trace, auto_class)
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert "base.trust_remote_code" in str(error.value)
    assert not trace.exists()
    loaded = load_model(folder, trust_remote_code=True)
    assert trace.exists() and type(loaded.model).__name__ == "OwnModel"
    anatomy(loaded.model)
    assert type(meta_model(Source(str(folder), trust_remote_code=True))).__name__ == "OwnModel"


@pytest.mark.parametrize("target", ["itself", "elsewhere"])
def test_a_folder_cannot_allow_its_own_code(folder, model, tmp_path, target):
    trace = tmp_path / "ran"
    own_code(folder, model, trace)
    pointer = folder if target == "itself" else tmp_path / "pointer"
    pointer.mkdir(exist_ok=True)
    (pointer / "model.json").write_text(json.dumps({"id": str(folder), "trust_remote_code": True}))
    with pytest.raises(ModelError) as error:
        load_model(pointer)
    assert "base.trust_remote_code" in str(error.value)
    assert not trace.exists()
    load_model(pointer, trust_remote_code=True)
    write_pointer(Source(str(folder), trust_remote_code=True), pointer)
    assert "trust_remote_code" not in (pointer / "model.json").read_text()


def test_quantised_loading_says_what_it_needs(folder, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )
    with pytest.raises(ModelError) as error:
        load_model(folder, device="cpu", quantization="4bit")
    assert "pip install 'efface[quantization]'" in str(error.value)
    with pytest.raises(ModelError) as error:
        load_model(folder, quantization="3bit")
    assert "quantization" in str(error.value) and "'3bit'" in str(error.value)


def test_a_language_model_and_a_pair_of_encoders_are_refused(tmp_path):
    from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=10, **small)).save_pretrained(tmp_path / "text")
    tower = {**small, "image_size": 16, "patch_size": 8}
    pair = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 10}, vision_config=tower))
    pair.save_pretrained(tmp_path / "pair")
    for name, kind in (("text", "llama"), ("pair", "clip")):
        with pytest.raises(ModelError) as error:
            load_model(tmp_path / name)
        assert f"'{kind}'" in str(error.value)
    with pytest.raises(ModelError) as error:
        anatomy(pair)
    assert "CLIPModel" in str(error.value)


def test_the_error_of_an_omni_model_names_the_part_to_save():
    from transformers import Qwen2_5OmniConfig

    from efface.models.loading import auto_class

    with pytest.raises(ModelError) as error:
        auto_class(Source("Qwen/Qwen2.5-Omni-3B"), Qwen2_5OmniConfig())
    assert "thinker" in str(error.value) and "'qwen2_5_omni'" in str(error.value)


def test_types_of_another_auto_class_are_accepted():
    from transformers import Phi4MultimodalConfig, Qwen2AudioConfig

    from efface.models.loading import auto_class

    name = auto_class(Source("x"), Phi4MultimodalConfig()).__name__
    assert name in ("AutoModelForMultimodalLM", "AutoModelForCausalLM")
    with pytest.raises(ModelError) as error:
        auto_class(Source("x"), Qwen2AudioConfig())
    assert "'qwen2_audio'" in str(error.value)


@pytest.mark.parametrize(
    ("error", "packages"),
    [
        (
            ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in"),
            "'efface[families]'",
        ),
        (ModuleNotFoundError("No module named 'num2words'", name="num2words"), "'efface[families]'"),
        (
            ImportError("\nTimmWrapperModel requires the timm library but it was not found in your environ"),
            "'efface[families]'",
        ),
        (
            ImportError("\nTapasModel requires the sqids library but it was not found in your environment."),
            "sqids",
        ),
        (
            ImportError(
                "This modeling file requires the following packages that were not found in your "
                "environment: einops, flash_attn. Run `pip install einops flash_attn`"
            ),
            "einops flash_attn",
        ),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(error, packages):
    message = str(loading_error(Source("some/model"), error))
    assert f"pip install {packages} " in message


def test_a_processor_of_another_model_is_refused(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "m")
    for change, value in (
        ({"tokenizer": build_tokenizer(["<x>", "<image>"], size=500)}, "499"),
        ({"tokenizer": build_tokenizer(["<x>", "<image>"], corpus=["red"])}, "id 5"),
        ({"patch_size": 4}, "4 pixels"),
    ):
        tokenizer = change.get("tokenizer", processor.tokenizer)
        stranger = sandbox.build_processor(tokenizer, **(SHAPE | {"patch_size": change.get("patch_size", 8)}))
        stranger.save_pretrained(tmp_path / "m")
        with pytest.raises(ModelError) as error:
            load_model(tmp_path / "m")
        assert "LlavaProcessor" in str(error.value) and value in str(error.value)


def test_a_tokenizer_without_padding_token_names_the_option(folder, processor, pictured):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert "base.pad_token" in str(error.value) and "'</s>'" in str(error.value)
    assert load_model(folder, pad_token="<unk>").processor.tokenizer.pad_token == "<unk>"
    with pytest.raises(ModelError) as error:
        load_model(folder, pad_token="<none>")
    assert "pad_token" in str(error.value) and "'<none>'" in str(error.value)
    bare = load_model(folder, pad_token="<unk>").processor
    bare.tokenizer.pad_token = None
    with pytest.raises(DataError) as error:
        Encoder(bare, pictured).batch([0, 1])
    assert "base.pad_token" in str(error.value)


def test_a_missing_chat_template_names_the_option_and_a_wrong_path_is_refused(folder, pictured):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError) as error:
        Encoder(load_model(folder).processor, pictured).batch([0])
    assert "base.chat_template" in str(error.value)
    with pytest.raises(ModelError) as error:
        load_model(folder, chat_template="nowhere.jinja")
    assert "chat_template" in str(error.value) and "'nowhere.jinja'" in str(error.value)


def test_a_missing_folder_and_a_truncated_one(folder, tmp_path):
    with pytest.raises(ModelError) as error:
        load_model(tmp_path / "nothing")
    assert "nothing" in str(error.value) and "config.json" in str(error.value)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_changes_of_the_template_are_saved_with_it(folder, tmp_path):
    template = "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] if p['type'] == 'text' %}"
    template += "{{ p['text'] }}{% endfor %} {% endfor %}{% if short %}S{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    source = Source(str(folder), system="Be brief .", template_arguments={"short": True})
    loaded = load_model(source)
    assert prompt_of(loaded.processor, "Who?", image=False) == "system: Be brief . user: Who? S"
    save_model(loaded.model, loaded.processor, tmp_path / "saved")
    again = load_model(tmp_path / "saved").processor
    assert prompt_of(again, "Who?", image=True) == "system: Be brief . user: Who? S"
    write_pointer(source, tmp_path)
    assert load_model(tmp_path).processor.chat_template == again.chat_template


def test_a_system_turn_that_the_template_does_not_write_is_refused(folder):
    def refusal():
        with pytest.raises(ModelError) as error:
            load_model(folder, system="Be brief.")
        return str(error.value)

    # The sandbox's template writes every other role as ASSISTANT.
    assert "base.system" in refusal() and "'Be brief.'" in refusal()
    refusing = "{% if messages[0]['role'] == 'system' and messages[1]['content'][0]['type'] == 'image' %}"
    refusing += "{{ raise_exception('not beside pictures') }}{% endif %}{{ messages }}"
    (folder / "chat_template.jinja").write_text(refusing)
    assert "base.system" in refusal()
    (folder / "chat_template.jinja").unlink()
    assert "base.chat_template" in refusal()
    with pytest.raises(ModelError) as error:
        load_model(folder, template_arguments={"enable_thinking": False})
    assert "base.template_arguments" in str(error.value)
