"""Estimates of the memory that work with a model needs, from its modules and shapes without weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.models.anatomy import Anatomy
from efface.models.loading import auto_class, load_config
from efface.models.source import Source, base_of, loading_error

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from efface.models.lora import Lora

_FLOAT32 = 4
_BYTES = {"4bit": 0.5, "8bit": 1.0}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that each kind of work needs at once, weights included, activations left out.

    Attributes:
        evaluation: the model as saved.
        saliency: two Fisher diagonals and the gradients of the weights a mask may select.
        unlearning: gradients of both terms, two AdamW moments and a mask.
        pruning: statistics of every neuron in four sets.
    """

    evaluation: int
    saliency: int
    unlearning: int
    pruning: int


def meta_model(source: Source) -> PreTrainedModel:
    """The model's modules without weights, on torch's meta device: takes seconds, even for 70B.

    Raises:
        ModelError: if the configuration cannot be read, or is not that of a multimodal LLM.
    """
    import torch

    base = base_of(source)
    config = load_config(base)
    try:
        dtype = getattr(torch, base.dtype) if base.dtype != "auto" else config.dtype or torch.float32
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(base, config).from_config(
                config, dtype=dtype, trust_remote_code=base.trust_remote_code
            )
    except Exception as error:  # every family's model raises errors of its own
        raise loading_error(base, error) from error
    model.tie_weights()
    return model.eval()


def estimate_memory(
    model: nn.Module,
    parts: Anatomy,
    *,
    measured: Collection[str],
    lora: Lora | None = None,
    quantization: str | None = None,
) -> MemoryEstimate:
    """Estimate from shapes alone.

    Args:
        model: the model or its meta model.
        parts: its anatomy.
        measured: names of the parameters that saliency measures; with ``lora`` it measures the factors.
        lora: shape of the factors that train; None: every weight trains, in float32.
        quantization: ``4bit`` or ``8bit`` weights of linear layers beside the factors; None: as saved.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    saved = sum(p.numel() * p.element_size() for p in model.parameters())
    neurons = sum(mlp.width for mlp in parts.mlps)
    if lora is None:
        weights, trained = _FLOAT32 * sum(sizes.values()), sum(sizes.values())
        selectable = sum(sizes[name] for name in measured)
    else:
        weights = saved - sum(_saved_bytes(model, name, quantization) for name in parts.maskable)
        selectable = trained = sum(lora_parameters(model, parts, lora).values())
        weights += _FLOAT32 * trained
    return MemoryEstimate(
        evaluation=saved,
        saliency=weights + selectable * 3 * _FLOAT32,
        unlearning=weights + trained * 4 * _FLOAT32 + selectable // 8,
        pruning=saved + neurons * 3 * 8 * 4,
    )


def lora_parameters(model: nn.Module, parts: Anatomy, lora: Lora) -> dict[str, int]:
    """Number of weights in LoRA's factors by group: per layer, rank times inputs plus outputs."""
    from efface.models.lora import linear_layers

    counts = dict.fromkeys(parts.groups, 0)
    for name in linear_layers(model, lora.components):
        counts[parts.group_of(f"{name}.weight")] += lora.rank * sum(
            model.get_parameter(f"{name}.weight").shape
        )
    return counts


def _saved_bytes(model: nn.Module, name: str, quantization: str | None) -> int:
    """Bytes that 4 or 8 bits save on a linear layer's weight."""
    from torch import nn

    layer, _, kind = name.rpartition(".")
    if quantization is None or kind != "weight" or not isinstance(model.get_submodule(layer), nn.Linear):
        return 0
    weight = model.get_parameter(name)
    return int(weight.numel() * (weight.element_size() - _BYTES[quantization]))
