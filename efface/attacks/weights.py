"""Attacks on the weights: rounding them, and putting a part of the vanilla model back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.errors import ModelError
from efface.models import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 32
"""Weights that share a scale below 8 bits."""


@torch.no_grad()
def quantize(model: PreTrainedModel, *, bits: int) -> int:
    """Round the weights of all linear layers except the output head to ``bits`` bits, in place.

    Symmetric, to nearest: one scale per output channel at 8 bits, one per 32 weights of a channel below. The
    weights stay floating-point numbers, so the attack needs no kernels and runs anywhere.

    Args:
        model: is changed.
        bits: 2 to 8.

    Returns:
        Number of weights rounded.

    Reference:
        Zhang et al., "Catastrophic failure of LLM unlearning via quantization", arXiv:2410.16454.
    """
    head = model.get_output_embeddings()
    rounded = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.copy_(_rounded(module.weight, bits, None if bits == 8 else GROUP))
            rounded += module.weight.numel()
    return rounded


def _rounded(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """``weight`` (O, I) rounded with one scale per row, or per ``group`` weights of a row."""
    rows, width = weight.shape
    size = width if group is None or width % group else group
    blocks = weight.float().reshape(rows, -1, size)
    most = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(dim=-1, keepdim=True) / most
    steps = torch.where(scale > 0, blocks / scale.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    return (steps.round().clamp(-most, most) * scale).reshape(rows, width).to(weight.dtype)


@torch.no_grad()
def reload_part(model: PreTrainedModel, vanilla: PreTrainedModel, *, part: str) -> int:
    """Put a part of the vanilla model back into an unlearned one, in place.

    Args:
        model: is changed.
        vanilla: the model it was made from.
        part: ``vision``, ``projector`` or ``language``.

    Returns:
        Number of weights that differed before.

    Raises:
        ModelError: if there is no such part, or the two models have different shapes.
    """
    groups = anatomy(model).groups
    if part not in groups:
        raise ModelError(f"part is {part!r}: expected one of {', '.join(groups)}")
    source, changed = dict(vanilla.named_parameters()), 0
    for name in groups[part]:
        parameter = model.get_parameter(name)
        if name not in source or source[name].shape != parameter.shape:
            raise ModelError(
                f"the vanilla model has no weight {name} of shape {tuple(parameter.shape)}: expected the "
                "model that the unlearned one was made from"
            )
        before = source[name].to(parameter.device)  # vanilla may wait in main memory
        changed += int((parameter != before).sum())
        parameter.copy_(before)
    return changed
