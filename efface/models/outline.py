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
    from efface.models.lora import Lora

_FLOAT32 = 4
_BYTES = {"4bit": 0.5, "8bit": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes that each kind of work holds at once, weights included, activations left out.

    Attributes:
        evaluation: the model as it is saved.
        saliency: two Fisher diagonals and the gradients of the weights a mask may select.
        unlearning: gradients of both terms, two AdamW moments and a mask.
        pruning: statistics of every neuron in four sets.
    """

    evaluation: int
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


def memory(
    model: nn.Module,
    parts: Anatomy,
    *,
    chosen: Collection[str],
    lora: Lora | None = None,
    quantization: str | None = None,
) -> Memory:
    """Estimate from shapes alone.

    Args:
        model: the model or its outline.
        parts: its anatomy.
        chosen: names of the parameters that saliency measures; with ``lora`` it measures the factors.
        lora: shape of the factors that train; None: every weight trains, in float32.
        quantization: ``4bit`` or ``8bit`` weights of linear layers beside the factors; None: as saved.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    saved = sum(p.numel() * p.element_size() for p in model.parameters())
    neurons = sum(mlp.width for mlp in parts.mlps)
    if lora is None:
        weights, trained = _FLOAT32 * sum(sizes.values()), sum(sizes.values())
        measured = sum(sizes[name] for name in chosen)
    else:
        weights = saved - sum(_spared(model, name, quantization) for name in parts.maskable)
        measured = trained = sum(factors_of(model, parts, lora).values())
        weights += _FLOAT32 * trained
    return Memory(
        evaluation=saved,
        saliency=weights + measured * 3 * _FLOAT32,
        unlearning=weights + trained * 4 * _FLOAT32 + measured // 8,
        pruning=saved + neurons * 3 * 8 * 4,
    )


def factors_of(model: nn.Module, parts: Anatomy, lora: Lora) -> dict[str, int]:
    """Number of weights that LoRA's factors have in each group: rank times inputs plus outputs per layer."""
    from efface.models.lora import linear_layers

    counts = dict.fromkeys(parts.groups, 0)
    for name in linear_layers(model, lora.components):
        counts[parts.group_of(f"{name}.weight")] += lora.rank * sum(
            model.get_parameter(f"{name}.weight").shape
        )
    return counts


def _spared(model: nn.Module, name: str, quantization: str | None) -> int:
    """Bytes that a linear layer's weight gives up in 4 or 8 bits."""
    from torch import nn

    layer, _, kind = name.rpartition(".")
    if quantization is None or kind != "weight" or not isinstance(model.get_submodule(layer), nn.Linear):
        return 0
    weight = model.get_parameter(name)
    return int(weight.numel() * (weight.element_size() - _BYTES[quantization]))
