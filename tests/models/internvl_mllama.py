"""InternVL and Mllama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.models.family import attach_tokens
from tests.models.llava import SMALL_TEXT
from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As the family's own, it refuses a system turn before a picture.
MLLAMA_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if messages[0]['role'] == 'system' and part['type'] == 'image' %}"
    "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
    "{% endif %}{% endfor %}{% endfor %}"
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def internvl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InternVL: tiles of 24 pixels, 16 patches each, shuffled into 4 tokens."""
    from efface.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = build_tokenizer(
        ["<|im_start|>"],
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    side = {"height": 24, "width": 24}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": [24, 24],
        "patch_size": [6, 6],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(vocab_size=len(tokenizer), **SMALL_TEXT),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    attach_tokens(model, processor)
    return model, processor


def mllama() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Mllama: pictures enter through cross-attention layers, not as tokens of the text."""
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokenizer = build_tokenizer(
        ["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"],
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    )
    images = MllamaImageProcessorPil(size={"height": 24, "width": 24}, max_image_tiles=2)
    processor = MllamaProcessor(images, tokenizer, chat_template=MLLAMA_TEMPLATE)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "vision_output_dim": 32,
    }
    # Mllama's output head has no row for the picture token.
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    text = {**SMALL_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = MllamaConfig(
        vision_config=vision,
        text_config={**text, **words, "rope_parameters": rope},
        image_token_index=processor.image_token_id,
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():  # closed gates would hide the picture from an untrained model
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or name.endswith("gate_attn") or name.endswith("gate_ffn"):
                parameter.fill_(1.0)
    attach_tokens(model, processor)
    return model, processor
