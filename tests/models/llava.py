"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.models.family import attach_tokens
from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# Shaped as the families' own templates are: LLaVA-1.5 and NeXT write a dialogue, OneVision uses ChatML.
DIALOGUE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }} {% else %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
SMALL_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}


def llava(
    vision: dict[str, object] | None = None, text: dict[str, object] | None = None, vocabulary: int = 0
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-1.5: CLIP tower read at its last but one layer, two-layer projector, Llama.

    Args:
        vision: values of the CLIP configuration; None builds the tiny one. The text's likewise.
        text: values of the Llama configuration.
        vocabulary: least number of tokens.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tower = CLIPVisionConfig(**(vision or SMALL_VISION))
    tokenizer = build_tokenizer(["<image>"], size=vocabulary)
    side = tower.image_size
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=DIALOGUE,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(vocab_size=len(tokenizer), **(text or SMALL_TEXT)),
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor


def llava_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-NeXT: as LLaVA-1.5, with a picture cut into tiles and the padding of the tiles left out."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        MistralConfig,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = build_tokenizer(["<image>"])
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=DIALOGUE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**SMALL_VISION),
        text_config=MistralConfig(vocab_size=len(tokenizer), **SMALL_TEXT),
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        model.model.image_newline.normal_()  # torch.empty otherwise
    attach_tokens(model, processor)
    return model, processor


def llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-OneVision: SigLIP tower, tiles, Qwen2."""
    from efface.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tokenizer = build_tokenizer(
        ["<|im_start|>", "<image>", "<video>"], bos=None, eos="<|im_end|>", pad="<|endoftext|>"
    )
    side = {"height": 24, "width": 24}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SMALL_VISION, vision_use_head=False),
        text_config=Qwen2Config(vocab_size=len(tokenizer), **SMALL_TEXT),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        model.model.image_newline.normal_()
    attach_tokens(model, processor)
    return model, processor
