"""Checking that work with a model fits into the GPU's memory before weights are loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efface.errors import ModelError

if TYPE_CHECKING:
    from tasks.config import Params
    from tasks.config.unlearning import Lora


def require_memory(
    params: Params,
    folder: Path,
    work: Literal["evaluation", "saliency", "training"],
    *,
    lora: Lora | None = None,
) -> None:
    """Refuse work that by the estimate exceeds the GPU's memory, before weights are loaded.

    The estimate leaves out activations and a second term's gradient, so it refuses nothing that could run.

    Args:
        params: parameters.
        folder: the model.
        work: scoring a model as saved, making its mask, or training it.
        lora: the section `unlearn.lora`; None: all weights train.

    Raises:
        ModelError: naming the GPU, its memory and what is needed.
    """
    import torch

    from efface.models import anatomy
    from efface.models.memory import estimate_memory, lora_parameters, meta_model
    from efface.models.source import resolve

    if not torch.cuda.is_available():
        return
    source = replace(resolve(folder), trust_remote_code=params.base.trust_remote_code)
    if source.device_map is not None:  # spread over several GPUs
        return
    model = meta_model(source)
    if work == "evaluation":
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
    elif work == "training" and lora is None:
        needed = 4 * 4 * sum(p.numel() for p in model.parameters())  # weights, gradient, two moments
    else:
        parts = anatomy(model)
        measured = set(parts.maskable) & {key for g in params.saliency.groups for key in parts.groups[g]}
        shape = None if lora is None else lora.shape
        quantization = None if lora is None else lora.quantization
        estimate = estimate_memory(model, parts, measured=measured, lora=shape, quantization=quantization)
        needed = estimate.saliency
        if work == "training" and shape is not None:
            needed = estimate.unlearning - 4 * sum(lora_parameters(model, parts, shape).values())
    size = torch.cuda.mem_get_info()[1]
    if needed > size:
        raise ModelError(
            f"{work} of {folder} takes {needed / 2**30:.1f} GiB without activations, by the estimate, and "
            f"{torch.cuda.get_device_name()} has {size / 2**30:.1f}; use a larger GPU, a "
            "smaller model or, for unlearning, LoRA (unlearn.lora)"
        )
