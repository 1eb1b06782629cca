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
FALSE_POSITIVES = 0.01


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


def min_k_signal(values: Sequence[float]) -> float:
    """Mean of the lowest share `LOWEST` of the answer's tokens, at least one.

    Args:
        values: per token, at least one: log-probabilities for min-k; for min-k++ log-probabilities minus
            their mean over the vocabulary, over their standard deviation, under the model's own distribution.

    Reference:
        Shi et al., "Min-K%", arXiv:2310.16789; Zhang et al., "Min-K%++", arXiv:2404.02936.
    """
    ascending = sorted(float(value) for value in values)
    smallest = ascending[: max(1, int(LOWEST * len(ascending)))]
    return math.fsum(smallest) / len(smallest)


def auc(members: Signals, non_members: Signals) -> float:
    """Probability that a member's signal is above a non-member's, ties counted half; in [0, 1].

    Raises:
        ValueError: if a group is empty.
    """
    from scipy.stats import rankdata

    inside, outside = _signals(members, non_members)
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def true_positive_rate(members: Signals, non_members: Signals) -> float:
    """Share of members above a threshold that at most 1 % of non-members exceed; in [0, 1].

    Args:
        members: signals of training data.
        non_members: signals of data the model never saw. With fewer than 100 of them the threshold is their
            highest signal.

    Raises:
        ValueError: as for `auc`.

    Reference:
        Carlini et al., "Membership inference attacks from first principles", arXiv:2112.03570.
    """
    inside, outside = _signals(members, non_members)
    threshold = np.sort(outside)[::-1][int(FALSE_POSITIVES * len(outside))]
    return float(np.mean(inside > threshold))


def privacy_leak(value: float, retrained: float) -> float:
    """((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained); 0 is ideal.

    Below 0 members still stand out; above 0 they stand out as unnaturally unlikely, which reveals them too.

    Args:
        value: AUC of the model, in [0, 1].
        retrained: AUC of the retrained model, in [0, 1); at 1 the leak is not defined.

    Reference:
        Shi et al., "MUSE", arXiv:2407.06460, as a share instead of per cent.
    """
    return (retrained - value) / (1 - retrained)


def _signals(members: Signals, non_members: Signals) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = np.asarray(list(members), float), np.asarray(list(non_members), float)
    if not len(inside) or not len(outside):
        raise ValueError(
            f"members are {len(inside)} and non_members {len(outside)} samples: expected one or more of "
            "each; membership inference needs a holdout set"
        )
    return inside, outside
