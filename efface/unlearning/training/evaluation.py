"""Measuring a model while it unlearns: the points of the forget-retain curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.encoding import IGNORED, Encoder, to_device
from efface.encoding.forward import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EvaluationCallback:
    """Measures a model between steps without changing the run.

    Attributes:
        every: optimizer steps between measurements; the last step is measured as well.
        sets: name of a set, such as ``forget`` or ``retain``, to its questions, at least one each.
        batch_size: questions per forward pass; does not change the result.
    """

    every: int
    sets: Mapping[str, Encoder]
    batch_size: int

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Share of answers per set, in [0, 1], that greedy decoding gives word for word, as ``<set>_known``.

        Computes no gradient, draws no random number, and leaves the model in its mode.
        """
        device, training = next(model.parameters()).device, model.training
        shares = {}
        model.eval()
        try:
            for name, encoder in self.sets.items():
                count = 0
                for batch in encoder.batches(self.batch_size):
                    inputs = to_device(batch, device)
                    labels = inputs.pop("labels")
                    count += int(greedy_matches(forward(model, inputs).logits, labels).sum())
                shares[f"{name}_known"] = count / len(encoder)
        finally:
            model.train(training)
        return shares


def greedy_matches(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether greedy decoding gives each row's answer, end token included, word for word.

    It does if and only if every token of the answer is the likeliest after the tokens before it. Checking
    that takes one forward pass; generating takes one per token.

    Args:
        logits: (B, T, V); those at a position predict the next token.
        labels: (B, T), -100 outside the answer.

    Returns:
        Bool tensor (B,).
    """
    targets = labels[:, 1:]
    return ((logits[:, :-1].argmax(dim=-1) == targets) | (targets == IGNORED)).all(dim=1)
