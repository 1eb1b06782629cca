"""Gemma 3 and PaliGemma."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.models.family import attach_tokens
from tests.models.llava import SMALL_TEXT, SMALL_VISION
from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# Gemma 3 has no system role: a system turn is written before the user's own words. The template writes the
# begin token itself.
GEMMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'][0]['text'] + ' ' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{% if loop.first %}{{ first }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# PaliGemma has no dialogue: a task in words, and the answer as suffix.
PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}answer en {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3: 36 patches pooled to 9 tokens that see each other both ways; sliding-window attention."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = build_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        bos="<bos>",
        eos="<eos>",
    )
    images = Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
    processor = Gemma3Processor(images, tokenizer, chat_template=GEMMA3_TEMPLATE, image_seq_length=9)
    text = {**SMALL_TEXT, "tie_word_embeddings": True, "head_dim": 16, "query_pre_attn_scalar": 16}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=len(tokenizer),
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            **text,
        ),
        vision_config=SiglipVisionConfig(**{**SMALL_VISION, "patch_size": 4}, vision_use_head=False),
        mm_tokens_per_image=9,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # zero at first: an untrained model would not see the picture
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.05)
    attach_tokens(model, processor)
    return model, processor


def paligemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """PaliGemma: picture and question see each other both ways, the answer is a suffix."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = build_tokenizer(named={"image_token": "<image>"}, bos="<bos>", eos="<eos>")
    images = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    images.image_seq_length = 9
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=PALIGEMMA_TEMPLATE)
    vocabulary = len(tokenizer)
    text = {**SMALL_TEXT, "tie_word_embeddings": True, "head_dim": 16, "num_key_value_heads": 1}
    config = PaliGemmaConfig(
        text_config=GemmaConfig(vocab_size=vocabulary, **text),
        vision_config=SiglipVisionConfig(**SMALL_VISION, vision_use_head=False),
        image_token_index=tokenizer.image_token_id,
        vocab_size=vocabulary,
        projection_dim=32,
        hidden_size=32,
    )
    model = PaliGemmaForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor
