"""Which weight of the model a trained parameter belongs to, with and without LoRA."""

from __future__ import annotations

import re

_WRAPPER = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"\.lora_(?P<kind>[A-Za-z_]+)\.[^.]+(?P<rest>\.weight|\.bias)?$")


def weight_of(name: str) -> str:
    """The weight that a LoRA factor changes; a name without LoRA in it is its own.

    PEFT names the factors of ``x.weight`` ``base_model.model.x.lora_A.default.weight`` (and ``lora_B``), and
    calls the weight itself ``x.base_layer.weight``.
    """
    inside = _WRAPPER.sub("", name)
    return _FACTOR.sub(".weight", inside).replace(".base_layer.", ".")
