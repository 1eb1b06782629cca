"""Idefics2, Idefics3 and SmolVLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.models.family import attach_tokens
from tests.models.llava import SMALL_TEXT, SMALL_VISION
from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% if message['content'][0]['type'] != 'image' %} {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_IMAGE_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
_TILED = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}


def idefics2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics2: pictures in their own shape with a pixel mask, a perceiver between tower and decoder."""
    from transformers import (
        Idefics2Config,
        Idefics2ForConditionalGeneration,
        Idefics2Processor,
        MistralConfig,
    )
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    tokenizer = build_tokenizer(_IMAGE_TOKENS)
    images = Idefics2ImageProcessorPil(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    processor = Idefics2Processor(images, tokenizer, image_seq_len=3, chat_template=TEMPLATE)
    perceiver = {
        "hidden_size": 32,
        "resampler_n_latents": 3,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
        "num_key_value_heads": 1,
    }
    config = Idefics2Config(
        vision_config={**SMALL_VISION, "image_size": 32},
        perceiver_config=perceiver,
        text_config=MistralConfig(vocab_size=len(tokenizer), **SMALL_TEXT),
        image_token_id=processor.image_token_id,
    )
    model = Idefics2ForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3: a picture becomes rows and columns of tiles and one small copy of the whole."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        LlamaConfig,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _tiled_tokenizer()
    images = Idefics3ImageProcessorPil(**_TILED)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=9, chat_template=TEMPLATE)
    config = Idefics3Config(
        vision_config={**SMALL_VISION, "patch_size": 4},
        text_config=LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALL_TEXT),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    model = Idefics3ForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor


def smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SmolVLM: as Idefics3, with a video processor."""
    from efface.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tokenizer = _tiled_tokenizer()
    processor = SmolVLMProcessor(
        SmolVLMImageProcessorPil(**_TILED),
        tokenizer,
        SmolVLMVideoProcessor(**_TILED),
        image_seq_len=9,
        chat_template=TEMPLATE,
    )
    config = SmolVLMConfig(
        vision_config={**SMALL_VISION, "patch_size": 4},
        text_config=LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALL_TEXT),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    model = SmolVLMForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor


def _tiled_tokenizer() -> PreTrainedTokenizerFast:
    tiles = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    return build_tokenizer([*_IMAGE_TOKENS, "<global-img>", "<video>", *tiles])
