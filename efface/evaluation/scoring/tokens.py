"""Scores of the tokens of an answer under teacher forcing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.encoding import IGNORED

_CHUNK_ELEMENTS = 1 << 26
"""Logits processed together: a quarter of a gigabyte in float32, whatever the vocabulary."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of the tokens of one answer, its end token included.

    Attributes:
        logprobs: natural logarithm of each token's probability.
        ranks: number of tokens of the vocabulary that were likelier; 0 for the likeliest.
        zscores: log-probability minus its mean, divided by its standard deviation, both under the model's own
            distribution at that position; 0 without spread.
    """

    logprobs: list[float]
    ranks: list[int]
    zscores: list[float]

    @property
    def nll(self) -> float:
        """Negative log-likelihood in nats per token."""
        return -math.fsum(self.logprobs) / len(self.logprobs)


def token_scores(logits: Tensor, targets: Tensor) -> list[TokenScores]:
    """Scores of the targets of each row.

    Args:
        logits: (B, T, V); those at a position predict the target at that position.
        targets: (B, T), -100 where nothing is scored; at least one target per row.

    Returns:
        One entry per row, its tokens in order.

    Raises:
        ValueError: if a row has no target.
    """
    scored = targets != IGNORED
    counts = scored.sum(dim=1).tolist()
    if 0 in counts:
        raise ValueError(f"row {counts.index(0)} has no answer token: every sample needs a non-empty answer")
    flat, tokens = logits[scored], targets[scored]
    size = max(1, _CHUNK_ELEMENTS // flat.shape[-1])
    parts = [
        _scores_of(flat[start : start + size], tokens[start : start + size])
        for start in range(0, len(tokens), size)
    ]
    columns = [torch.cat(column).split(counts) for column in zip(*parts, strict=True)]
    return [TokenScores(*(column.tolist() for column in row)) for row in zip(*columns, strict=True)]


def _scores_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, rank and standardised log-probability of ``tokens`` (N,) under ``logits`` (N, V)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    picked = logprobs.gather(-1, tokens[:, None])
    ranks = (logprobs > picked).sum(dim=-1)
    probabilities = logprobs.exp()
    finite = logprobs.masked_fill(probabilities == 0, 0.0)
    mean = (probabilities * finite).sum(dim=-1)
    spread = ((probabilities * (finite - mean[:, None]) ** 2).sum(dim=-1)).sqrt()
    picked = picked.squeeze(-1)
    zscores = torch.where(spread > 0, (picked - mean) / spread, torch.zeros_like(spread))
    return picked, ranks, zscores
