"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3-VL-MoE: pictures of any size, all patches in one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.models.family import attach_tokens
from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# A system turn is put in when the user gives none, as Qwen2-VL's own template does.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _processor(kind: str) -> ProcessorMixin:
    """Processor with patches of 4 pixels; pictures keep their shape between 64 and 1024 pixels."""
    from efface.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = build_tokenizer(
        ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 64, "longest_edge": 1024}
    video = "Qwen3VLVideoProcessor" if kind == "Qwen3VLProcessor" else "Qwen2VLVideoProcessor"
    return getattr(transformers, kind)(  # type: ignore[no-any-return]
        image_processor=Qwen2VLImageProcessorPil(size=size, **patches),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video)(size=size, **patches),
        chat_template=TEMPLATE,
    )


def _tokens(processor: ProcessorMixin) -> dict[str, int]:
    number = processor.tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }


def qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2-VL: plain vision MLPs, the projector (merger) inside the tower."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = _processor("Qwen2VLProcessor")
    config = Qwen2VLConfig(
        vision_config={**VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        text_config={**TEXT, "vocab_size": len(processor.tokenizer)},
        **_tokens(processor),
    )
    return _finished(Qwen2VLForConditionalGeneration(config), processor)


def qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL: gated vision MLPs with biases, windowed attention."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    processor = _processor("Qwen2_5_VLProcessor")
    vision = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16}
    config = Qwen2_5_VLConfig(
        vision_config={**VISION, **vision, "fullatt_block_indexes": [1]},
        text_config={**TEXT, "vocab_size": len(processor.tokenizer)},
        **_tokens(processor),
    )
    return _finished(Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen3-VL: features of earlier vision layers enter the first decoder layers (deepstack)."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    processor = _processor("Qwen3VLProcessor")
    config = Qwen3VLConfig(
        vision_config=_vision3(),
        text_config={**TEXT, "head_dim": 16, "vocab_size": len(processor.tokenizer)},
        **_tokens(processor),
    )
    return _finished(Qwen3VLForConditionalGeneration(config), processor)


def qwen3_vl_moe() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen3-VL-MoE: each decoder layer picks 2 of 4 experts per token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    processor = _processor("Qwen3VLProcessor")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = Qwen3VLMoeConfig(
        vision_config=_vision3(),
        text_config={**TEXT, **experts, "head_dim": 16, "vocab_size": len(processor.tokenizer)},
        **_tokens(processor),
    )
    return _finished(Qwen3VLMoeForConditionalGeneration(config), processor)


def _vision3() -> dict[str, Any]:
    return {
        **VISION,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }


def _finished(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[PreTrainedModel, ProcessorMixin]:
    attach_tokens(model, processor)
    return model, processor
