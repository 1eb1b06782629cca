"""What a model still knows of both sides, measured now and then while it unlearns: the forget-retain curve.

An answer counts as known if every token of it, end token included, is the likeliest one after those before:
then, and only then, greedy decoding gives it word for word. One pass over the answers tells, where generating
would take one per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.encoding import IGNORED, Encoder
from efface.encoding.batches import to_device
from efface.encoding.forward import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Watch:
    """Measures a model between steps and changes nothing about the run.

    Attributes:
        every: optimizer steps between measurements; the last step is measured as well.
        sides: what is measured, such as ``forget`` and ``retain``, to its questions; none may be empty.
        batch_size: questions side by side; no influence on the result.
    """

    every: int
    sides: Mapping[str, Encoder]
    batch_size: int

    def after(self, step: int, model: PreTrainedModel, *, last: bool) -> dict[str, float]:
        """What is measured after so many steps: nothing between the steps asked for."""
        return self.measure(model) if last or step % self.every == 0 else {}

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Share of known answers per side, in [0, 1], as ``<side>_known``.

        No gradient is computed, no random number drawn, and the model is left in the mode it was in.
        """
        device, training = next(model.parameters()).device, model.training
        model.eval()
        try:
            return {
                f"{side}_known": self._share(model, encoder, device) for side, encoder in self.sides.items()
            }
        finally:
            model.train(training)

    def _share(self, model: PreTrainedModel, encoder: Encoder, device: torch.device) -> float:
        known = 0
        for batch in encoder.batches(self.batch_size):
            inputs = to_device(batch, device)
            labels = inputs.pop("labels")
            known += int(known_answers(forward(model, inputs).logits, labels).sum())
        return known / len(encoder)


def known_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each row's answer is what greedy decoding gives.

    Args:
        logits: (B, T, V), at each place those that predict the next one's token.
        labels: (B, T), -100 outside the answer.

    Returns:
        Bool tensor (B,).
    """
    targets = labels[:, 1:]
    return ((logits[:, :-1].argmax(dim=-1) == targets) | (targets == IGNORED)).all(dim=1)
