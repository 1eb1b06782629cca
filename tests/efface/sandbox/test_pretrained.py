"""A LLaVA around a decoder that was trained before."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.errors import ModelError
from efface.models import anatomy, load_model, save_model
from efface.sandbox import build_processor, pretrained
from tests.efface.conftest import sample

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOWER = {"image_size": 24, "patch_size": 12, "width": 16, "mlp_width": 32, "vision_layers": 2, "heads": 2}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def decoder_folder(request, tmp_path_factory):
    """A tiny Llama with a byte-level tokenizer and a template that takes plain text, as SmolLM2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words.train_from_iterator(["the capital of France is Paris"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("decoder")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(folder):
    decoder, tokenizer, origin = pretrained.load_decoder(str(folder))
    pretrained.prepare_tokenizer(tokenizer)
    processor = build_processor(tokenizer, image_size=24, patch_size=12)
    processor.chat_template = pretrained.chat_template(tokenizer)
    assert origin == str(folder)
    return decoder, pretrained.build_model(decoder, tokenizer, **TOWER), processor


def test_words_alone_get_the_decoders_own_logits(decoder_folder):
    decoder, model, processor = build(decoder_folder)
    ids = processor.tokenizer("the capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, decoder(input_ids=ids).logits, rtol=0, atol=0)


def test_prompts_are_the_decoders_with_pictures_before_the_words(decoder_folder):
    _, _, processor = build(decoder_folder)
    user = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    assert processor.apply_chat_template([{"role": "user", "content": user}], add_generation_prompt=True) == (
        "<|im_start|>user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": user[1:]}]
    assert processor.apply_chat_template(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
    )


def test_the_saved_folder_loads_encodes_and_has_all_parts(decoder_folder, tmp_path):
    _, model, processor = build(decoder_folder)
    save_model(model, processor, tmp_path / "llava")
    loaded = load_model(tmp_path / "llava")
    samples = [sample(0), sample(1, pictured=False)]
    batch = Encoder(loaded.processor, samples).batch([0, 1])
    labels = batch.pop("labels")
    with torch.no_grad():
        assert torch.isfinite(loaded.model(**batch).logits).all()
    for row, one in zip(labels, samples, strict=True):
        assert loaded.processor.tokenizer.decode(row[row >= 0]) == f"{one.answer}<|im_end|>"
    assert {mlp.tower for mlp in anatomy(loaded.model).mlps} == {"vision", "language"}


def test_a_decoder_that_cannot_be_used_says_what_to_do(decoder_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source, words in (
        (tmp_path / "absent.gguf", "is not a file"),
        (tmp_path / "no_folder", "base.decoder"),
    ):
        with pytest.raises(ModelError, match="base.decoder") as error:
            pretrained.load_decoder(str(source))
        assert str(source) in str(error.value) and words in str(error.value)
    whole = tmp_path / "cut.gguf"
    whole.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ModelError, match="GGUF file"):
        pretrained.load_decoder(str(whole))
