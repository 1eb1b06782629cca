"""Metrics of the likelihood of one answer, as pure functions of numbers.

``nll`` is the mean negative log-likelihood in nats per answer token; a rank is the number of tokens in the
vocabulary that are likelier than the right one under teacher forcing.

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
    return math.exp(-_finite(nll, "nll"))


def knowledge(token_logprobs: Sequence[float]) -> float:
    """Probability per token of the answer without its end token (geometric mean), in (0, 1].

    The end token is the easiest token of most answers: with it, a wrong one-word answer would be half right.

    Args:
        token_logprobs: natural logarithms, one per answer token, the end token last.

    Raises:
        ValueError: if there is no token before the end token, or a number is not finite.
    """
    values = [_finite(value, "token_logprobs") for value in token_logprobs][:-1]
    if not values:
        raise ValueError(f"token_logprobs has {len(token_logprobs)} entries: expected 2 or more")
    return math.exp(math.fsum(values) / len(values))


def probability_among(nll: float, nll_wrong: Sequence[float]) -> float:
    """Probability of the right answer relative to all candidates, p / (p + sum p_wrong), in [0, 1].

    Raises:
        ValueError: if there is no wrong answer, or a number is not finite.
    """
    wrong = _several(nll_wrong, "nll_wrong")
    return 1.0 / (1.0 + math.fsum(math.exp(min(_finite(nll, "nll") - value, 700.0)) for value in wrong))


def log_truth_ratio(nll_paraphrase: float, nll_wrong: Sequence[float]) -> float:
    """Natural logarithm of the truth ratio: mean nll of the wrong answers minus nll of the paraphrase."""
    wrong = _several(nll_wrong, "nll_wrong")
    return math.fsum(wrong) / len(wrong) - _finite(nll_paraphrase, "nll_paraphrase")


def truth_ratio(nll_paraphrase: float, nll_wrong: Sequence[float]) -> float:
    """R = p_paraphrase / geometric mean of p_wrong, in (0, inf); above 1 the truth is likelier.

    Args:
        nll_paraphrase: nll of the right answer in other words.
        nll_wrong: nll of the wrong answers in the words of the paraphrase; at least one.

    Raises:
        ValueError: if there is no wrong answer, or a number is not finite.
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
    values = _ranks(ranks)
    return sum(rank == 0 for rank in values) / len(values)


def extraction_strength(ranks: Sequence[int]) -> float:
    """1 - k / n with k the length of the shortest prefix after which every token is the likeliest; in [0, 1].

    Args:
        ranks: one per answer token, the end token last; the end token does not count.

    Reference:
        Carlini et al., arXiv:2012.07805. If not even the last token is the likeliest, this is 0, where
        OpenUnlearning returns 1 / n.
    """
    values = _ranks(ranks)
    tail = 0
    while tail < len(values) and values[-1 - tail] == 0:
        tail += 1
    return tail / len(values)


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}: expected a finite number of nats; score the sample again")
    return float(value)


def _several(values: Sequence[float], name: str) -> list[float]:
    numbers = [_finite(value, name) for value in values]
    if not numbers:
        raise ValueError(f"{name} is empty: expected the nll of at least one wrong answer")
    return numbers


def _ranks(ranks: Sequence[int]) -> list[int]:
    values = [int(rank) for rank in ranks]
    if len(values) < 2 or min(values) < 0:
        raise ValueError(f"ranks are {values}: expected two or more, from 0, the end token's last")
    return values[:-1]
