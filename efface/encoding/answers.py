"""Log-probabilities of answers, and the losses computed from them.

Only labelled positions count: the labels of prompt, picture and padding are -100. The loss of a sample
is the mean over its answer tokens, the loss of a batch the mean over its samples, so neither padding nor the
other samples of a batch change a sample's loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.encoding.batches import IGNORED, Inputs
from efface.encoding.forward import forward


@dataclass(frozen=True)
class AnswerLogProbs:
    """Log-probability of each sample's answer.

    Attributes:
        total: sum over the answer tokens, natural logarithm, shape (B,).
        tokens: number of answer tokens, shape (B,).
    """

    total: Tensor
    tokens: Tensor

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood in nats per answer token, shape (B,)."""
        return -self.total / self.tokens


def answer_log_probs(model: nn.Module, inputs: Inputs) -> AnswerLogProbs:
    """Log-probabilities of the labelled tokens under the model.

    Args:
        model: a multimodal LLM.
        inputs: processor output with ``labels`` (B, T).

    Raises:
        ValueError: if a sample has no labelled token.
    """
    labels = inputs["labels"]
    return log_probs_of(forward(model, inputs).logits, labels)


def log_probs_of(logits: Tensor, labels: Tensor) -> AnswerLogProbs:
    """Log-probabilities of ``labels`` (B, T) under ``logits`` (B, T, V), each predicted from the previous
    position."""
    targets = labels[:, 1:]
    answered = targets != IGNORED
    tokens = answered.sum(dim=1)
    if bool((tokens == 0).any()):
        rows = (tokens == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {rows} of the batch have no labelled token: every sample needs a non-empty answer"
        )
    logprobs = -torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    return AnswerLogProbs(total=logprobs.sum(dim=1), tokens=tokens)


def nll(model: nn.Module, inputs: Inputs) -> Tensor:
    """Mean over samples of the mean negative log-likelihood of the answer tokens, in nats; a scalar."""
    return answer_log_probs(model, inputs).nll.mean()
