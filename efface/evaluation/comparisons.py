"""Comparing two models by the numbers of the same rows: forget quality, distances between distributions."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test of truth ratios, a model against the retrained one.

    Attributes:
        p_value: in [0, 1]; high means that the two cannot be told apart.
        log10: its decimal logarithm, at most 0; no lower than about -307.
        statistic: largest distance between the two distribution functions, in [0, 1].
        n: rows compared.
    """

    p_value: float
    log10: float
    statistic: float
    n: int


def forget_quality(ratios: Sequence[float], retrained: Sequence[float]) -> ForgetQuality:
    """How well the truth ratios of a model fit those of the retrained model on the same rows.

    Args:
        ratios: truth ratio R of each row under the model, positive.
        retrained: the same rows under the retrained model.

    Raises:
        ValueError: if the numbers of rows differ or are 0, or a ratio is not a positive number.

    Reference:
        Maini et al., "TOFU", arXiv:2401.06121, section 2.2.2.
    """
    from scipy.stats import ks_2samp

    pair = _paired(ratios, retrained)
    result = ks_2samp(*pair)
    p_value = float(result.pvalue)
    return ForgetQuality(
        p_value=p_value,
        log10=min(math.log10(max(p_value, sys.float_info.min)), 0.0),
        statistic=float(result.statistic),
        n=len(pair[0]),
    )


def js_distance(ratios: Sequence[float], retrained: Sequence[float], *, bins: int | None = None) -> float:
    """Jensen-Shannon distance (square root of the divergence, natural logarithm), in [0, sqrt(ln 2)].

    Args:
        ratios: truth ratio of each row under the model, positive.
        retrained: the same rows, in the same order, under the retrained model.
        bins: None compares the two as distributions over the rows, each divided by its sum, as CLEAR's code
            does; the order of rows then matters. A number compares histograms of log-ratios with that many
            common bins, at least 1, for which it does not.

    Raises:
        ValueError: as :func:`forget_quality`.
    """
    from scipy.special import rel_entr

    first, second = _paired(ratios, retrained)
    if bins is not None:
        edges = np.histogram_bin_edges(np.log(np.concatenate([first, second])), bins=bins)
        first, second = (np.histogram(np.log(values), edges)[0].astype(float) for values in (first, second))
    first, second = first / first.sum(), second / second.sum()
    middle = (first + second) / 2
    divergence = float(rel_entr(first, middle).sum() + rel_entr(second, middle).sum()) / 2
    return math.sqrt(max(divergence, 0.0))  # rounding can put equal ones just below 0


@dataclass(frozen=True)
class RelativeDistance:
    """Is a model nearer to the retrained or to the vanilla model?

    Attributes:
        difference: mean over people of d(model, vanilla) - d(model, retrained), in nats per token; above 0
            the retrained model is nearer.
        p_value: of the hypothesis that neither is nearer, two-sided.
        people: number of people compared; the smallest possible p value is 2 / 2**people.
    """

    difference: float
    p_value: float
    people: int


def relative_distance(
    model: Mapping[str, Sequence[float]],
    vanilla: Mapping[str, Sequence[float]],
    retrained: Mapping[str, Sequence[float]],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> RelativeDistance:
    """Relative three-sample test: no model equals one retrained model, so ask which of two it is nearer to.

    The distance d of two models on a person is the root mean square difference of their log-probabilities
    of the person's answers. The signs of the differences are flipped by person: in all ways for up to 12
    people, else at random.

    Args:
        model: person to the log-probability per token of each answer, natural logarithms.
        vanilla: the same answers under the vanilla model.
        retrained: the same answers under the retrained model.
        permutations: number of random sign flips for more than 12 people.
        seed: seed of the flips.

    Raises:
        ValueError: if the three do not hold the same people and numbers of answers.
    """
    sizes = [
        {person: len(values) for person, values in answers.items()} for answers in (model, vanilla, retrained)
    ]
    if not sizes[0] or sizes[0] != sizes[1] or sizes[0] != sizes[2]:
        raise ValueError(
            "expected the same people and numbers of answers from all three models, got "
            f"{[(len(size), sum(size.values())) for size in sizes]} people and answers"
        )

    def distance(person: str, reference: Mapping[str, Sequence[float]]) -> float:
        difference = np.asarray(model[person], float) - np.asarray(reference[person], float)
        return float(np.sqrt(np.mean(difference**2)))

    values = np.array([distance(person, vanilla) - distance(person, retrained) for person in sorted(model)])
    count = len(values)
    if count <= 12:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        rng = np.random.default_rng(seed)
        signs = np.concatenate([np.ones((1, count)), rng.choice((1.0, -1.0), size=(permutations, count))])
    flipped = np.abs(signs @ values) / count
    mean = float(values.mean())
    return RelativeDistance(mean, float(np.mean(flipped >= abs(mean) - 1e-12)), count)


def _paired(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    pair = np.asarray(list(first), dtype=float), np.asarray(list(second), dtype=float)
    if len(pair[0]) != len(pair[1]) or not len(pair[0]):
        raise ValueError(
            f"expected the truth ratios of the same rows from both models, got {len(pair[0])} and "
            f"{len(pair[1])}; score both on the same samples"
        )
    for values in pair:
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError("a truth ratio is not a positive number; score the model again")
    return pair
