"""Metrics of the likelihood of one answer, as pure functions of numbers.

``nll`` is the mean negative log-likelihood in nats per answer token; a rank is the number of tokens in the
vocabulary that are likelier than the right one under teacher forcing. Scoring checks that
numbers are finite.

Reference:
    Probability, truth ratio and their names: Maini et al., "TOFU", arXiv:2401.06121; multimodal form:
    Dontsov et al., "CLEAR", arXiv:2410.18057, whose code takes one mean over all wrong answers of all rows;
    the definition, followed here, takes each row's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def probability(nll: float) -> float:
    """Probability per token (geometric mean), in (0, 1]: exp(-nll)."""
    return math.exp(-nll)


def knowledge(token_logprobs: Sequence[float]) -> float:
    """Probability per token of the answer without its end token (geometric mean), in (0, 1].

    The end token is the easiest token of most answers: with it, a wrong one-word answer would be half right.

    Args:
        token_logprobs: natural logarithms, one per answer token, two or more, the end token last.
    """
    values = token_logprobs[:-1]
    return math.exp(math.fsum(values) / len(values))


def probability_among(nll: float, nll_wrong: Sequence[float]) -> float:
    """Probability of the right answer relative to all candidates, p / (p + sum p_wrong), in [0, 1]."""
    return 1.0 / (1.0 + math.fsum(math.exp(min(nll - value, 700.0)) for value in nll_wrong))


def log_truth_ratio(nll_paraphrase: float, nll_wrong: Sequence[float]) -> float:
    """Natural logarithm of the truth ratio: mean nll of the wrong answers minus nll of the paraphrase."""
    return math.fsum(nll_wrong) / len(nll_wrong) - nll_paraphrase


def truth_ratio(nll_paraphrase: float, nll_wrong: Sequence[float]) -> float:
    """R = p_paraphrase / geometric mean of p_wrong, in (0, inf); above 1 the truth is likelier.

    Args:
        nll_paraphrase: nll of the right answer in other words.
        nll_wrong: nll of the wrong answers in the words of the paraphrase; at least one.
    """
    return math.exp(min(log_truth_ratio(nll_paraphrase, nll_wrong), 700.0))


def truth_ratio_score(nll_paraphrase: float, nll_wrong: Sequence[float], *, forget: bool) -> float:
    """The truth ratio as a score in [0, 1].

    For people to forget min(R, 1/R), which is 1 if truth and error are equally likely; for others
    max(0, 1 - 1/R), which approaches 1 as the truth becomes likelier.
    """
    log_ratio = log_truth_ratio(nll_paraphrase, nll_wrong)
    return math.exp(-abs(log_ratio)) if forget else max(0.0, -math.expm1(-log_ratio))


def exact_memorisation(ranks: Sequence[int]) -> float:
    """Share of answer tokens that are the likeliest of the vocabulary under teacher forcing, in [0, 1].

    Args:
        ranks: one per answer token, the end token last; the end token does not count.
    """
    values = [int(rank) for rank in ranks[:-1]]
    return sum(rank == 0 for rank in values) / len(values)


def extraction_strength(ranks: Sequence[int]) -> float:
    """1 - k / n with k the length of the shortest prefix after which every token is the likeliest; in [0, 1].

    Args:
        ranks: one per answer token, the end token last; the end token does not count.

    Reference:
        Carlini et al., arXiv:2012.07805. If not even the last token is the likeliest, this is 0, where
        OpenUnlearning returns 1 / n.
    """
    values = [int(rank) for rank in ranks[:-1]]
    tail = 0
    while tail < len(values) and values[-1 - tail] == 0:
        tail += 1
    return tail / len(values)
