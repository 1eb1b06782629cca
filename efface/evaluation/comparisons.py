"""Comparing two models by the numbers of the same rows: forget quality, distances between distributions."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
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

    ours, theirs = _paired(ratios, retrained)
    result = ks_2samp(ours, theirs)
    p_value = float(result.pvalue)
    return ForgetQuality(
        p_value=p_value,
        log10=min(math.log10(max(p_value, sys.float_info.min)), 0.0),
        statistic=float(result.statistic),
        n=len(ours),
    )


def js_distance(ratios: Sequence[float], retrained: Sequence[float], *, bins: int | None = None) -> float:
    """Jensen-Shannon distance (square root of the divergence, natural logarithm), in [0, sqrt(ln 2)].

    Args:
        ratios: truth ratio of each row under the model, positive.
        retrained: the same rows, in the same order, under the retrained model.
        bins: None compares the two as distributions over the rows, each divided by its sum, as CLEAR's code
            does; the order of rows then matters. A number compares histograms of log-ratios with so many
            common bins, in which rows have no order.

    Raises:
        ValueError: as :func:`forget_quality`, or if ``bins`` is not positive.
    """
    from scipy.special import rel_entr

    ours, theirs = _paired(ratios, retrained)
    if bins is not None:
        if bins < 1:
            raise ValueError(f"bins is {bins}: expected at least 1")
        edges = np.histogram_bin_edges(np.log(np.concatenate([ours, theirs])), bins=bins)
        ours, theirs = (np.histogram(np.log(values), edges)[0].astype(float) for values in (ours, theirs))
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    middle = (ours + theirs) / 2
    divergence = float(rel_entr(ours, middle).sum() + rel_entr(theirs, middle).sum()) / 2
    return math.sqrt(max(divergence, 0.0))  # two equal ones may come out a rounding error below 0


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of numbers in [0, inf); 0 as soon as one of them is 0.

    Raises:
        ValueError: if there is no value, or one is negative or not finite.
    """
    found = [float(value) for value in values]
    if not found or any(not math.isfinite(value) or value < 0 for value in found):
        raise ValueError(f"expected one or more finite values of at least 0 for a harmonic mean, got {found}")
    return float(statistics.harmonic_mean(found))


def _paired(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.asarray(list(first), dtype=float), np.asarray(list(second), dtype=float)
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"expected the truth ratios of the same rows from both models, got {len(ours)} and "
            f"{len(theirs)}; "
            "score both on the same samples"
        )
    for values in (ours, theirs):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError("a truth ratio is not a positive number; score the model again")
    return ours, theirs
