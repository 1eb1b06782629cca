"""Forward passes in which a sample's output does not depend on its batch."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface.encoding.batches import Inputs, collate, split
from efface.errors import DataError
from efface.models.anatomy import image_token_id

_log = logging.getLogger(__name__)
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_PRECISION = 0.05
_batched: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""Whether a model's batches agree with single samples, with pictures (True) and without."""


def forward(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """Output of the model for a batch, computed sample by sample unless ``supports_batches``.

    Args:
        model: a multimodal LLM.
        inputs: processor output, with or without ``labels``, which are not passed to the model.
        options: further arguments of the model, such as ``output_hidden_states``.

    Returns:
        An object with ``logits`` (B, T, V) and, if asked for, ``hidden_states``.
    """
    parts = separable(model, inputs)
    if len(parts) == 1:
        return _call(model, inputs, **options)
    outputs = [_call(model, sample, **options) for sample in parts]
    hidden = [output.hidden_states for output in outputs if getattr(output, "hidden_states", None)]
    return SimpleNamespace(
        logits=torch.cat([output.logits for output in outputs]),
        hidden_states=tuple(torch.cat(layer) for layer in zip(*hidden, strict=True)) if hidden else None,
    )


def separable(model: nn.Module, inputs: Inputs) -> list[Inputs]:
    """The batch itself, or its samples one by one unless ``supports_batches``."""
    if len(inputs["input_ids"]) == 1 or supports_batches(model, inputs):
        return [inputs]
    return split(inputs, image_token_id(model))


@torch.no_grad()
def supports_batches(model: nn.Module, inputs: Inputs) -> bool:
    """Whether this model computes the same for a sample in a batch as for the sample alone.

    The first two samples of a model's first batch are compared, once with pictures and once without; later
    batches are assumed to behave alike. Families differ because nothing in a processor's output says which
    rows belong to which sample. Processes that share the weights of a model do not compare.

    Args:
        model: a multimodal LLM.
        inputs: processor output of several samples.
    """
    pictured = any(key.startswith("pixel_values") for key in inputs)
    results = _batched.setdefault(model, {})
    if len(inputs["input_ids"]) < 2 or torch.distributed.is_initialized():
        return results.get(pictured, True)
    if pictured not in results:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            results[pictured] = _agrees(model, inputs)
        finally:
            for module, training in modes:
                module.training = training
        if not results[pictured]:
            kind = "with pictures" if pictured else "of text"
            _log.warning(
                "%s: a batch %s differs from its samples; they go one by one", type(model).__name__, kind
            )
    return results[pictured]


def _agrees(model: nn.Module, inputs: Inputs) -> bool:
    try:
        samples = split(inputs, image_token_id(model))[:2]
        pair = collate(samples, 0)
    except DataError:  # nothing says what belongs to which sample, so there is nothing to compare
        return True
    alone = torch.cat([_call(model, sample).logits for sample in samples])
    try:
        together: Tensor = _call(model, pair).logits
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    tokens = pair["attention_mask"].bool() if "attention_mask" in pair else ...
    difference = (together - alone)[tokens].abs().max()
    tolerance = _TOLERANCE.get(alone.dtype, _HALF_PRECISION)
    if torch.is_autocast_enabled(alone.device.type):
        tolerance = _HALF_PRECISION
    return bool(difference <= tolerance * alone[tokens].abs().max())


def model_inputs(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs without their labels, pixels in the precision of the model's weights."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
        if key != "labels"
    }


def _call(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """The model's output. GIT puts pictures before the text without tokens: those positions are cut off."""
    output = model(**model_inputs(model, inputs), **options)
    length = inputs["input_ids"].shape[1]
    if output.logits.shape[1] > length:
        output.logits = output.logits[:, -length:]
        if getattr(output, "hidden_states", None):
            output.hidden_states = tuple(layer[:, -length:] for layer in output.hidden_states)
    return output
