"""A model's outline, its modules and shapes without weights, and the memory that work with it will take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.errors import ModelError
from efface.models.anatomy import Anatomy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from efface.models.loading import Source


@dataclass(frozen=True)
class Memory:
    """Bytes that each kind of work holds at once, weights included, activations left out.

    Attributes:
        weights: the model alone.
        saliency: two Fisher diagonals and the gradients of the weights a mask may select.
        unlearning: gradients of both terms, two AdamW moments and a mask.
        pruning: statistics of every neuron in four sets.
    """

    weights: int
    saliency: int
    unlearning: int
    pruning: int


def outline(source: Source) -> PreTrainedModel:
    """The model with all its modules and no weights (on torch's meta device): seconds, even for 70B.

    Raises:
        ModelError: if the configuration cannot be read, or is not that of a multimodal LLM.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from efface.models.loading import base_of, cannot_load, must_see_pictures

    base = base_of(source)
    common = {"revision": base.revision, "trust_remote_code": base.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(base.id, **common)
        must_see_pictures(base, config)
        dtype = getattr(torch, base.dtype) if base.dtype != "auto" else config.dtype or torch.float32
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, dtype=dtype, trust_remote_code=base.trust_remote_code
            )
    except ModelError:
        raise
    except Exception as error:  # every family's configuration raises its own kinds
        raise cannot_load(base, error) from error
    model.tie_weights()
    return model.eval()


def memory(model: nn.Module, parts: Anatomy, *, chosen: Collection[str]) -> Memory:
    """Estimate from shapes alone.

    Args:
        model: the model or its outline.
        parts: its anatomy.
        chosen: names of the parameters that saliency measures; training moves every parameter.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    measured = sum(sizes[name] for name in chosen)
    element = max(p.element_size() for p in model.parameters())
    neurons = sum(mlp.width for mlp in parts.mlps)
    return Memory(
        weights=weights,
        saliency=weights + measured * (4 + 4 + element),
        unlearning=weights + sum(sizes.values()) * element * (2 + 2) + measured,
        pruning=weights + neurons * 3 * 8 * 4,
    )
