"""LoRA through PEFT: which layers get factors, and the model without them or with them merged."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from efface.errors import ModelError
from efface.models.anatomy import GROUPS, anatomy, decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPER = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"\.lora_[A-Za-z_]+\.[^.]+(\.weight|\.bias)?$")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lora:
    """Shape of the factors.

    Attributes:
        rank: rank of each update, at least 1.
        alpha: updates are scaled by alpha / rank.
        dropout: share of the factors' inputs that is dropped in training, in [0, 1).
        components: groups of the model whose linear layers get factors: language, projector, vision.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    components: Sequence[str] = ("language",)


class Adapter:
    """LoRA factors in a model. The model object stays the same; its layers hold the factors."""

    def __init__(self, model: PreTrainedModel, wrapped: Any):
        self.model = model
        self._wrapped = wrapped

    def disabled(self) -> AbstractContextManager[None]:
        """Within this context the model computes without the factors."""
        return self._wrapped.disable_adapter()

    def save(self, folder: Path) -> None:
        """Write only the factors, in PEFT's format."""
        self._wrapped.save_pretrained(folder)

    def merge(self) -> None:
        """Add the updates to the weights, in place, and remove the factors."""
        self._wrapped.merge_and_unload()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config


def add_lora(model: PreTrainedModel, lora: Lora, *, seed: int) -> Adapter:
    """Give a model trainable LoRA factors, in place; all other weights stop training.

    The factors start as a zero update. They are called ``<layer>.lora_A.default.weight`` and
    ``<layer>.lora_B.default.weight``, and the weight that they update ``<layer>.base_layer.weight``.

    Args:
        model: a multimodal LLM.
        lora: shape of the factors.
        seed: seed of the factors. The global random state stays unchanged.

    Raises:
        ModelError: if a component is unknown, or the components have no linear layer.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    for name in lora.components:
        if name not in GROUPS:
            raise ModelError(f"components has {name!r}: expected some of: {', '.join(GROUPS)}")
    targets = linear_layers(model, lora.components)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT accepts fractions as well
        lora_dropout=lora.dropout,
        target_modules=targets,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    return Adapter(model, wrapped)


def weight_of(name: str) -> str:
    """Name of the weight that a LoRA factor changes; any other name is returned unchanged.

    PEFT names the factors of ``x.weight`` ``base_model.model.x.lora_A.default.weight`` (and ``lora_B``), and
    calls the weight itself ``x.base_layer.weight``.
    """
    plain = _WRAPPER.sub("", name)
    return _FACTOR.sub(".weight", plain).replace(".base_layer.", ".")


def linear_layers(model: nn.Module, components: Sequence[str]) -> list[str]:
    """Names of the layers that get factors: the linear ones of some groups, without the output head.

    Routers of a mixture of experts, which return more than a product, get none, nor do experts whose weights
    are stacked in one parameter; the log says so. In a model whose parts are unknown, the decoder's layers
    get factors.

    Raises:
        ModelError: if there is none.
    """
    modules = dict(model.named_modules())
    try:
        parts = anatomy(model)
        inside = {name for group in components for name in parts.groups[group]}
        names = [name.removesuffix(".weight") for name in parts.maskable if name in inside]
    except ModelError:
        decoder = decoder_of(model)
        if decoder is None or list(components) != ["language"]:
            raise
        root = next(name for name, module in modules.items() if module is decoder)
        names = [name for name in modules if name.startswith(f"{root}.")]
    layers = [name for name in names if _takes_factors(modules.get(name))]
    stacked = [name for name in names if name.endswith(".down_proj") and name not in modules]
    if stacked:
        _log.warning("the stacked experts of %d layers get no LoRA factors and stay unchanged", len(stacked))
    if not layers:
        raise ModelError(
            f"components is {list(components)}: expected groups with a linear layer for LoRA to act on"
        )
    return layers


def _takes_factors(module: nn.Module | None) -> bool:
    """Whether a module is a plain or quantised linear layer, not a family's own subclass."""
    return isinstance(module, nn.Linear) and not type(module).__module__.startswith("transformers.models.")
