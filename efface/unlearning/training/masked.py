"""What a mask lets a term change, and what the optimizer gets to see of it.

With a retain term every weight moves, and the mask acts on the forget gradient alone. Without one, what is
outside the mask must stay as it is, bit for bit, whatever momentum and weight decay would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from efface.masks import PackedMask, keep_only
from efface.unlearning.training.config import LoopConfig

MOST = 0.4
"""Share of selected weights up to which rows of their own take less memory: 20 bytes for each (place, value
and two moments) against 8 for every weight."""


_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch has a fused AdamW."""


class MaskedWeights(Protocol):
    """The weights that train under a mask.

    Attributes:
        updated: what the optimizer moves, by parameter name.
    """

    updated: Mapping[str, nn.Parameter]

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of what is updated, from those of the parameters, which may be altered."""

    def stepped(self) -> None:
        """The optimizer has made a step."""

    def resumed(self) -> None:
        """A checkpoint was loaded into the parameters."""


def masked_weights(
    trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], config: LoopConfig, *, only: bool
) -> MaskedWeights:
    """The weights that train under a mask, in the way that suits the run.

    Args:
        trained: the parameters that train.
        mask: on their device; unpacked where the parameters are sharded, and sharded as they are.
        config: says where moments are kept, and how fast weights decay.
        only: whether nothing but the masked term moves weights, so that the others must not move.
    """
    if only and config.optimizer_state == "selected" and isinstance(mask, PackedMask):
        selected = sum(int(mask[name].sum()) for name in mask)
        if selected <= MOST * sum(p.numel() for p in trained.values()):
            return Rows(trained, mask)
    # Without decay a weight that never had a gradient stays where it is by itself.
    return Whole(trained, mask, hold=only and config.weight_decay > 0)


def adamw(updated: Mapping[str, nn.Parameter], config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
    """The optimizer of what is updated, fused where the device has it."""
    return torch.optim.AdamW(
        updated.values(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in _FUSED or None,
    )


class Whole:
    """All weights are updated; gradients outside the mask are set to zero, one tensor unpacked at a time.

    Args:
        trained: the parameters that train.
        mask: a parameter without an entry gets no gradient.
        hold: put weights outside the mask back to where they started after each step.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], *, hold: bool):
        self.updated: Mapping[str, nn.Parameter] = trained
        self._mask = mask
        self._start = {name: p.detach().clone() for name, p in trained.items()} if hold else {}

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the parameters that the mask names, in place."""
        mask = self._mask
        if isinstance(mask, PackedMask):
            return {name: keep_only(g, mask.bits[name]) for name, g in gradients.items() if name in mask.bits}
        return {name: g.mul_(mask[name]) for name, g in gradients.items() if name in mask}

    @torch.no_grad()
    def stepped(self) -> None:
        """Undo what weight decay did outside the mask."""
        for name, before in self._start.items():
            parameter, kept = self.updated[name], self._mask.get(name)
            parameter.copy_(before if kept is None else torch.where(kept, parameter, before))

    def resumed(self) -> None:
        """Nothing: the optimizer moves the parameters themselves."""


class Rows:
    """Only selected weights are updated: those of a tensor stand in a row of their own, which is all the
    optimizer sees. What is outside the mask is never written.

    Args:
        trained: the parameters that train; they get the rows' values after every step.
        mask: which of their weights are selected.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], mask: PackedMask):
        self._whole = {name: trained[name] for name in mask if mask.bits[name].any()}
        self._places = {name: mask[name].flatten().nonzero().flatten() for name in self._whole}
        self.updated: Mapping[str, nn.Parameter] = {
            name: nn.Parameter(self._gathered(name, p.detach())) for name, p in self._whole.items()
        }

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the rows."""
        return {name: self._gathered(name, g) for name, g in gradients.items() if name in self.updated}

    @torch.no_grad()
    def stepped(self) -> None:
        """Put the rows' values where they belong."""
        for name, row in self.updated.items():
            self._whole[name].view(-1).scatter_(0, self._places[name], row)

    @torch.no_grad()
    def resumed(self) -> None:
        """Take the values of the parameters."""
        for name, row in self.updated.items():
            row.copy_(self._gathered(name, self._whole[name]))

    def _gathered(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).index_select(0, self._places[name])
