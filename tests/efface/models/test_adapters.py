"""LoRA adapter folders: merged into their base, refused where their weights do not fit, unlearned from."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from efface.encoding import Encoder, prompt_of
from efface.errors import ModelError
from efface.models import anatomy, load_model, save_model, weights_digest
from efface.models.processors import load_processor
from efface.models.source import Source

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapted(folder):
    """A model with random factors in PEFT's wrapper."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(load_model(folder).model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(folder)
    return wrapped.eval()


@pytest.fixture
def adapter(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits_of(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def test_an_adapter_is_merged_into_its_base(adapted, adapter, model, processor, pictured):
    batch = Encoder(processor, pictured).batch(range(4))
    expected, before = logits_of(adapted, batch), logits_of(model, batch)
    loaded = load_model(adapter).model
    assert torch.allclose(logits_of(loaded, batch), expected, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-2)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(p.requires_grad for p in loaded.parameters())
    assert not hasattr(loaded, "peft_config")
    anatomy(loaded)


@pytest.mark.parametrize("base", ["/elsewhere/base", "../base", "runs/7/base"])
def test_an_adapter_whose_base_is_in_another_place_says_where_to_correct_it(adapter, base):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(ModelError, match=f"{base} .*no such folder.*adapter_config.json"):
        load_model(adapter)


def test_an_adapter_that_names_no_base_is_refused(adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError) as error:
        load_model(adapter)
    assert "base_model_name_or_path" in str(error.value)


@pytest.mark.parametrize("share", ["all", "half", "one", "missing", "nan"])
def test_an_adapter_whose_weights_do_not_fit_is_refused_by_name(adapter, share):
    weights = load_file(adapter / WEIGHTS)
    names = sorted(weights)
    count = {"all": len(names), "half": len(names) // 2}.get(share, 1)
    for name in names[:count]:
        value = weights.pop(name)
        if share == "nan":
            weights[name] = torch.full_like(value, torch.nan)
        elif share != "missing":
            weights[name.replace("base_model.model.model", "base_model.model.other")] = value
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ModelError) as error:
        load_model(adapter)
    layer = names[0].removeprefix("base_model.model.").partition(".lora_")[0]
    assert layer in str(error.value) and "\n" not in str(error.value)
    if share in ("all", "half", "one"):
        assert "base_model.model.other" in str(error.value)


def test_an_adapter_of_another_shape_is_refused(adapter):
    weights = {name: value.repeat(2, 2) for name, value in load_file(adapter / WEIGHTS).items()}
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ModelError) as error:
        load_model(adapter)
    assert "lora_" in str(error.value)


def test_the_processor_may_be_the_adapters_or_the_bases(adapter, folder, processor):
    assert load_processor(Source(str(adapter))).chat_template == processor.chat_template
    saved = load_model(folder).processor
    saved.chat_template = "own {{ messages[0]['content'][-1]['text'] }}"
    saved.save_pretrained(adapter)
    assert prompt_of(load_processor(Source(str(adapter))), "Who?", image=False) == "own Who?"


def test_a_processor_saved_as_transformers_4_did_has_its_own_template(adapter, folder):
    own = load_model(folder).processor
    own.tokenizer.save_pretrained(adapter)
    own.image_processor.save_pretrained(adapter)
    saved = json.loads((folder / "processor_config.json").read_text())
    images = saved.pop("image_processor") | {"processor_class": "LlavaProcessor"}
    images["image_processor_type"] = "CLIPImageProcessor"
    (adapter / "preprocessor_config.json").write_text(json.dumps(images))
    (adapter / "processor_config.json").unlink(missing_ok=True)
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    template = "four {{ messages[0]['content'][-1]['text'] }}"
    (adapter / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    loaded = load_processor(Source(str(adapter)))
    assert prompt_of(loaded, "Who?", image=False) == "four Who?"
    assert type(loaded.image_processor).__name__ == "CLIPImageProcessorPil"


def test_a_tokenizer_alone_replaces_the_bases(adapter, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "alone {{ messages[0]['content'][-1]['text'] }}"
    tokenizer.save_pretrained(adapter)
    loaded = load_processor(Source(str(adapter)))
    assert prompt_of(loaded, "Who?", image=False) == "alone Who?"


def test_added_tokens_need_embeddings_in_the_adapter(folder, tmp_path, pictured):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>", "<newer>"])
    model = load_model(folder).model
    model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(folder)
    for save_embeddings in (True, False):
        adapter = tmp_path / f"adapter-{save_embeddings}"
        wrapped.save_pretrained(adapter, save_embedding_layers=save_embeddings)
        tokenizer.save_pretrained(adapter)
        if not save_embeddings:
            with pytest.raises(ModelError) as error:
                load_model(adapter)
            assert str(len(tokenizer)) in str(error.value)
            continue
        loaded = load_model(adapter)
        assert len(loaded.model.get_input_embeddings().weight) == len(tokenizer)
        batch = Encoder(loaded.processor, pictured).batch(range(2))
        assert torch.allclose(logits_of(loaded.model, batch), logits_of(wrapped, batch), atol=1e-5)


@pytest.mark.slow
def test_adapter_to_base_to_vanilla_to_unlearned(adapter, processor, pictured, tmp_path):
    """The path of the stages at library level: point to the adapter, finetune, save, load, unlearn."""
    from efface.models.source import write_pointer
    from efface.unlearning import METHODS
    from efface.unlearning.finetuning import finetune
    from efface.unlearning.unlearn import unlearn

    (tmp_path / "base").mkdir()
    write_pointer(Source(str(adapter)), tmp_path / "base")
    base = load_model(tmp_path / "base")
    before = weights_digest(base.model)
    finetune(
        base.model,
        base.processor,
        pictured,
        steps=2,
        learning_rate=1e-3,
        batch_size=2,
        seed=0,
        label="vanilla",
    )
    save_model(base.model, base.processor, tmp_path / "vanilla")
    vanilla = load_model(tmp_path / "vanilla")
    assert weights_digest(vanilla.model) == weights_digest(base.model) != before
    start = weights_digest(vanilla.model)
    sets = {"forget": pictured[:2], "retain": pictured[2:4]}
    settings = METHODS["npo"].settings(learning_rate=1e-3, steps=1)
    unlearn(vanilla.model, vanilla.processor, method="npo", settings=settings, **sets)
    assert weights_digest(vanilla.model) != start


def test_routers_and_stacked_experts_get_no_factors(caplog):
    from efface.models.lora import Lora, add_lora, linear_layers
    from tests.models import build_tiny
    from tests.models.generic import tiny_config, tiny_model

    llama4 = tiny_model(tiny_config("llama4"))
    names = linear_layers(llama4, ["language"])
    assert names and not any("router" in name or "experts" in name for name in names)
    assert "stacked experts" in caplog.text
    add_lora(llama4, Lora(rank=2, alpha=4), seed=0)
    caplog.clear()
    model, _ = build_tiny("llava")
    assert linear_layers(model, ["language"]) and not caplog.text


def test_factors_need_no_vision_tower():
    """A model without a tower of its own: the layers of the decoder."""
    from efface.models.lora import Lora, add_lora
    from tests.models.generic import tiny_config, tiny_model

    model = tiny_model(tiny_config("fuyu"))
    with pytest.raises(ModelError):
        anatomy(model)
    add_lora(model, Lora(rank=2, alpha=4), seed=0)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name and "language_model" in name for name in names)
    with pytest.raises(ModelError):
        add_lora(model, Lora(rank=2, alpha=4, components=("vision",)), seed=0)
