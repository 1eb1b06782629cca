"""What a mask lets a term change, and what the optimizer gets to see of it.

With a retain term every weight moves, and the mask acts on the forget gradient alone. Without one, what is
outside the mask must stay as it is, bit for bit, whatever momentum and weight decay would do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from efface.masks import Masks
from efface.unlearning.training import fused
from efface.unlearning.training.config import LoopConfig
from efface.unlearning.training.precision import PrecisionName
from efface.unlearning.training.sharding import total_norm

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
        """Gradients of what is updated, from those of the parameters, which may be altered. What the mask
        leaves out of them may still be there: see ``norm`` and ``join``."""

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of what the mask leaves of the gradients."""

    def join(self, gradients: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
        """The last call before a step with these gradients: they are masked from here on, or in the step.
        Others, which no mask concerns and which are to be added, may be added and taken out of their dict.
        """

    def optimizer(self, config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
        """The optimizer of what is updated."""

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
    if only and config.optimizer_state == "selected" and isinstance(mask, Masks):
        selected = sum(int(mask[name].sum()) for name in mask)
        if selected <= MOST * sum(p.numel() for p in trained.values()):
            return Rows(trained, mask)
    # Without decay a weight that never had a gradient stays where it is by itself.
    hold = only and config.weight_decay > 0
    if config.masked_step == "compiled":
        try:
            return _compiled(trained, mask, config.precision, only=only, hold=hold)
        except (RuntimeError, OSError) as error:
            logging.getLogger(__name__).warning(
                "masked steps are not compiled but done in parts, which takes longer: %s",
                str(error).strip().split("\n")[0],
            )
    return Whole(trained, mask, hold=hold)


def adamw(updated: Mapping[str, nn.Parameter], config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
    """The optimizer of what is updated, fused where the device has it."""
    return torch.optim.AdamW(
        updated.values(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in _FUSED or None,
    )


def _compiled(
    trained: Mapping[str, nn.Parameter],
    mask: Mapping[str, Tensor],
    precision: PrecisionName,
    *,
    only: bool,
    hold: bool,
) -> Compiled:
    """Weights whose steps read the mask's bits.

    Raises:
        RuntimeError: if there are none, or nothing can be compiled here; also ``OSError``.
    """
    if precision == "fp16":
        raise RuntimeError("gradients of precision fp16 are scaled")
    if not isinstance(mask, Masks):
        raise RuntimeError("the weights are sharded")
    names = [name for name in mask if fused.fits(trained[name])]
    if not names:
        raise RuntimeError(
            f"none of {len(mask)} masked parameters is float32, on cpu or cuda, in one piece and of a size "
            f"that {fused.ROW} divides"
        )
    return Compiled(trained, mask, fused.Masked(trained[names[0]].device, hold=only), names, hold=hold)


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
        return {name: g.mul_(self._mask[name]) for name, g in gradients.items() if name in self._mask}

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of the gradients, which are masked."""
        return total_norm(list(gradients.values()))

    def join(self, gradients: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
        """Nothing: the gradients are masked, and adding is the caller's."""

    def optimizer(self, config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
        """torch's own."""
        return adamw(self.updated, config, device)

    @torch.no_grad()
    def stepped(self) -> None:
        """Undo what weight decay did outside the mask."""
        for name, before in self._start.items():
            parameter, kept = self.updated[name], self._mask.get(name)
            parameter.copy_(before if kept is None else torch.where(kept, parameter, before))

    def resumed(self) -> None:
        """Nothing: the optimizer moves the parameters themselves."""


class Compiled(Whole):
    """All weights are updated; the mask meets a gradient where it is read anyway, in a compiled pass: for its
    norm, and to add another to it or to make a step with it. Parameters that do not fit take the usual way.

    Args:
        trained: the parameters that train.
        mask: a parameter without an entry gets no gradient.
        masked: the passes.
        names: entries of the mask that fit.
        hold: of the others, put weights outside the mask back to where they started after each step.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        mask: Masks,
        masked: fused.Masked,
        names: list[str],
        *,
        hold: bool,
    ):
        self._words = {name: fused.words(mask.bits[name]) for name in names}
        super().__init__({n: p for n, p in trained.items() if n not in self._words}, mask, hold=hold)
        self.updated = trained
        self._masked = masked
        self._due: dict[int, Tensor] = {}

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the parameters that the mask names, those that fit as they are."""
        fit = {name: g.contiguous() for name, g in gradients.items() if name in self._words}
        return super().apply({name: g for name, g in gradients.items() if name not in fit}) | fit

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of what the mask leaves of the gradients."""
        fit = [name for name in gradients if name in self._words]
        parts = [super().norm({name: g for name, g in gradients.items() if name not in self._words})]
        if fit:
            parts.append(self._masked.norm([gradients[n] for n in fit], [self._words[n] for n in fit]))
        return torch.linalg.vector_norm(torch.stack([part.to(parts[-1].device) for part in parts]))

    def join(self, gradients: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
        """Mask and add where both have a gradient; leave the others' masks to the step."""
        fit = [name for name in gradients if name in self._words]
        both = {name: others.pop(name).contiguous() for name in fit if name in others}
        self._due.update({id(self.updated[name]): self._words[name] for name in fit if name not in both})
        self._masked.add(gradients, both, self._words)

    def optimizer(self, config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
        """One that masks what is due."""
        return fused.MaskedAdamW(
            self.updated.values(),
            self._masked,
            self._due,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def stepped(self) -> None:
        """Forget what was due."""
        self._due.clear()
        super().stepped()


class Rows:
    """Only selected weights are updated: those of a tensor stand in a row of their own, which is all the
    optimizer sees. What is outside the mask is never written.

    Args:
        trained: the parameters that train; they get the rows' values after every step.
        mask: which of their weights are selected.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], mask: Masks):
        self._whole = {name: trained[name] for name in mask if mask.bits[name].any()}
        self._places = {name: mask[name].flatten().nonzero().flatten() for name in self._whole}
        self.updated: Mapping[str, nn.Parameter] = {
            name: nn.Parameter(self._gathered(name, p.detach())) for name, p in self._whole.items()
        }

    def apply(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the rows."""
        return {name: self._gathered(name, g) for name, g in gradients.items() if name in self.updated}

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of the rows' gradients."""
        return total_norm(list(gradients.values()))

    def join(self, gradients: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
        """Nothing: there are no others."""

    def optimizer(self, config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
        """torch's own."""
        return adamw(self.updated, config, device)

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
