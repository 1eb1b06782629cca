"""Models of every supported family with random weights, built offline: tiny for tests, large for timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.models import google, idefics, internvl_mllama, llava, qwen
from tests.models.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_VIDEO = ("torchvision",)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llava", "LLaVA-1.5", llava.llava),
        Family("llava_next", "LLaVA-NeXT", llava.llava_next),
        Family("llava_onevision", "LLaVA-OneVision", llava.llava_onevision, _VIDEO),
        Family("qwen2_vl", "Qwen2-VL", qwen.qwen2_vl, _VIDEO),
        Family("qwen2_5_vl", "Qwen2.5-VL", qwen.qwen2_5_vl, _VIDEO),
        Family("qwen3_vl", "Qwen3-VL", qwen.qwen3_vl, _VIDEO),
        Family("qwen3_vl_moe", "Qwen3-VL-MoE", qwen.qwen3_vl_moe, _VIDEO),
        Family("idefics2", "Idefics2", idefics.idefics2),
        Family("idefics3", "Idefics3", idefics.idefics3),
        Family("smolvlm", "SmolVLM", idefics.smolvlm, (*_VIDEO, "num2words")),
        Family("internvl", "InternVL", internvl_mllama.internvl, _VIDEO),
        Family("gemma3", "Gemma 3", google.gemma3),
        Family("paligemma", "PaliGemma", google.paligemma),
        Family("mllama", "Mllama (Llama 3.2 Vision)", internvl_mllama.mllama),
    )
}
"""transformers' model type -> family."""


def build_tiny(name: str, *, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny untrained model of a family, in evaluation mode, and its processor.

    Weights are larger than at a usual start, so that gradients are well above rounding and answers differ.
    """
    import torch

    torch.manual_seed(seed)
    model, processor = FAMILIES[name].build()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
            elif parameter_name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval(), processor
