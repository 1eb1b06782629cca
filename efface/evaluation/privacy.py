"""Membership inference: do the likelihoods reveal what was training data?

A signal is one number per sample, higher for what looks like training data. Members are the people to forget,
non-members people whom no model was trained on. An ideal model gives an AUC of 0.5; because of sampling noise
the distance to the retrained model's AUC is the figure of merit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

Signals = Sequence[float] | np.ndarray
LOWEST = 0.4
"""Share of the least likely tokens that min-k looks at."""


def loss_signal(nll: float) -> float:
    """Minus the mean nll of the answer. Yeom et al., arXiv:1709.01604."""
    return -nll


def zlib_signal(nll: float, text: str) -> float:
    """Minus the mean nll per token over the answer's compressed size in bytes.

    Reference:
        Carlini et al., arXiv:2012.07805, divide a sequence's nll by this size; the mean per token is what
        OpenUnlearning divides.
    """
    return -nll / len(zlib.compress(text.encode()))


def min_k_signal(token_logprobs: Sequence[float], *, lowest: float = LOWEST) -> float:
    """Mean log-probability of the least likely share of the tokens, at least one.

    Reference:
        Shi et al., arXiv:2310.16789.
    """
    return _lowest_mean(token_logprobs, lowest)


def min_k_pp_signal(token_zscores: Sequence[float], *, lowest: float = LOWEST) -> float:
    """`min_k_signal` of standardised log-probabilities. Zhang et al., "Min-K%++", arXiv:2404.02936.

    Args:
        token_zscores: per token, log-probability minus its mean over the vocabulary, over its standard
            deviation, both under the model's own distribution.
        lowest: share of tokens, in (0, 1].
    """
    return _lowest_mean(token_zscores, lowest)


def auc(members: Signals, non_members: Signals) -> float:
    """Probability that a member's signal is above a non-member's, ties counted half; in [0, 1].

    Raises:
        ValueError: if a group is empty or a signal is not finite.
    """
    from scipy.stats import rankdata

    inside, outside = _signals(members, non_members)
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def true_positive_rate(members: Signals, non_members: Signals, *, false: float = 0.01) -> float:
    """Share of members above a threshold that at most the share ``false`` of non-members exceeds; in [0, 1].

    Args:
        members: signals of training data.
        non_members: signals of data the model never saw. With fewer than ``1 / false`` of them the threshold
            is their highest signal.
        false: false-positive rate, in [0, 1).

    Raises:
        ValueError: as for `auc`, or if ``false`` is out of range.

    Reference:
        Carlini et al., "Membership inference attacks from first principles", arXiv:2112.03570.
    """
    if not 0 <= false < 1:
        raise ValueError(f"false is {false}: expected a rate in [0, 1)")
    inside, outside = _signals(members, non_members)
    threshold = np.sort(outside)[::-1][int(false * len(outside))]
    return float(np.mean(inside > threshold))


def privacy_leak(value: float, retrained: float) -> float:
    """((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained); 0 is ideal.

    Below 0 members still stand out; above 0 they stand out as unnaturally unlikely, which reveals them too.

    Args:
        value: AUC of the model, in [0, 1].
        retrained: AUC of the retrained model, in [0, 1).

    Raises:
        ValueError: if an AUC is out of range, or the retrained model's is 1, where the leak is not defined.

    Reference:
        Shi et al., "MUSE", arXiv:2407.06460, as a share instead of per cent.
    """
    if not (0 <= value <= 1 and 0 <= retrained < 1):
        raise ValueError(
            f"expected an AUC in [0, 1] and one of the retrained model below 1, got {value} and {retrained}"
        )
    return (retrained - value) / (1 - retrained)


def _lowest_mean(values: Sequence[float], lowest: float) -> float:
    if not 0 < lowest <= 1:
        raise ValueError(f"lowest is {lowest}: expected a share in (0, 1]")
    ascending = sorted(float(value) for value in values)
    if not ascending:
        raise ValueError("expected numbers of one or more answer tokens, got none")
    smallest = ascending[: max(1, int(lowest * len(ascending)))]
    return math.fsum(smallest) / len(smallest)


def _signals(members: Signals, non_members: Signals) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = np.asarray(list(members), float), np.asarray(list(non_members), float)
    if not len(inside) or not len(outside):
        raise ValueError(
            f"members are {len(inside)} and non_members {len(outside)} samples: expected one or more of "
            "each; membership inference needs a holdout set"
        )
    if not np.all(np.isfinite(np.concatenate([inside, outside]))):
        raise ValueError("a membership signal is not finite; score the model again")
    return inside, outside
