"""Intervals over people, comparisons over folds and seeds, adjustment for multiple comparisons.

Answers about one person are correlated, so people are the units, never questions. Intervals over people leave
one person out at a time and use Student's t. They show how numbers would change with other people, but not
the noise of training, which only more seeds show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efface.evaluation import LEVEL

if TYPE_CHECKING:
    import pandas as pd

ADDED = 0.003
"""Units added at each end of a share's scale."""
POWER = 0.8
"""Probability with which the smallest detectable difference is detected."""
Cell = tuple[str, str]
"""Set and modality."""


@dataclass(frozen=True)
class Replicates:
    """Means of the cells of a table: of all people, then without each person in turn.

    Attributes:
        means: cell to an array of shape (1 + people,), entry 0 with everyone; NaN without the only person.
        groups: group of the person missing in each further entry, shape (people,).
    """

    means: Mapping[Cell, np.ndarray]
    groups: np.ndarray


@dataclass(frozen=True)
class PersonSums:
    """Sum and number of values per person in each cell.

    Attributes:
        sums: cell to an array of shape (people,).
        counts: the same, numbers of values.
        groups: group of each person, shape (people,).
    """

    sums: Mapping[Cell, np.ndarray]
    counts: Mapping[Cell, np.ndarray]
    groups: np.ndarray

    def replicates(self) -> Replicates:
        """Mean of each cell with everyone, and without each person in turn."""
        means = {}
        for cell, sums in self.sums.items():
            counts = self.counts[cell]
            total, count = sums.sum(), counts.sum()
            rest = count - counts
            without = np.divide(total - sums, rest, out=np.full(len(sums), np.nan), where=rest > 0)
            # Without rows of the person, exactly the mean of everyone: no rounding, no spread.
            means[cell] = np.concatenate([[total / count], np.where(counts > 0, without, total / count)])
        return Replicates(means, self.groups)


def person_sums(values: pd.DataFrame, cells: Iterable[Cell]) -> PersonSums:
    """Sums of the cells of a table by person.

    The sets ``forget`` and ``unseen`` are about the same people and share their units. Tables of the same
    samples give the same order of people, so functions of several models' means are paired.

    Args:
        values: columns ``set, modality, entity_id, value``; rows without a value do not count.
        cells: cells to sum; those without rows are missing in the result.
    """
    cells = list(dict.fromkeys(cells))
    rows = values[values["set"].isin([name for name, _ in cells])]
    sets, modalities = rows["set"].to_numpy(str), rows["modality"].to_numpy(str)
    every, entities = rows["value"].to_numpy(float), rows["entity_id"].to_numpy(str)
    groups = np.where(sets == "unseen", "forget", sets)
    keys = np.array([f"{group}\0{entity}" for group, entity in zip(groups, entities, strict=True)], dtype=str)
    people, owner = np.unique(keys, return_inverse=True)
    sums, counts = {}, {}
    for cell in cells:
        in_cell = (sets == cell[0]) & (modalities == cell[1]) & ~np.isnan(every)
        if in_cell.any():
            numbers, owners = every[in_cell], owner[in_cell]
            order = np.lexsort((numbers, owners))  # independent of the order of rows
            sums[cell] = np.bincount(owners[order], weights=numbers[order], minlength=len(people))
            counts[cell] = np.bincount(owners, minlength=len(people)).astype(float)
    return PersonSums(sums, counts, np.array([str(key).partition("\0")[0] for key in people]))


def cell_replicates(values: pd.DataFrame, cells: Iterable[Cell]) -> Replicates:
    """The `PersonSums.replicates` of `person_sums`."""
    return person_sums(values, cells).replicates()


@dataclass(frozen=True)
class Estimate:
    """A statistic with its uncertainty over people.

    Attributes:
        value: the statistic.
        error: its standard error, at least 0.
        freedom: degrees of freedom, above 0.
    """

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Lower and upper bound by Student's t at a confidence level in (0, 1)."""
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Two-sided p value of a true value of 0."""
        from scipy.stats import t

        if self.error == 0:
            return float(self.value == 0)
        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))


def jackknife(replicates: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """Uncertainty of a statistic from its values without each unit in turn.

    For a mean over people with equally many rows the interval is the ordinary t interval of their means. The
    degrees of freedom of several groups are Satterthwaite's.

    Args:
        replicates: the statistic of all units, then without each, shape (1 + units,).
        groups: group of each unit, shape (units,); groups vary independently.

    Returns:
        None if the statistic is undefined without some unit, or no unit changes it.

    Reference:
        Tukey 1958; Efron and Stein, "The jackknife estimate of variance", 1981.
    """
    variances, freedoms = [], []
    for group in dict.fromkeys(groups.tolist()):
        without = replicates[1:][groups == group]
        size = len(without)
        if np.all(without == replicates[0]):
            continue
        if size < 2 or not np.all(np.isfinite(without)):
            return None
        variances.append((size - 1) / size * float(np.sum((without - without.mean()) ** 2)))
        freedoms.append(size - 1)
    variance = sum(variances)
    if variance <= 0:
        return None
    freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return Estimate(float(replicates[0]), math.sqrt(variance), freedom)


def share_interval(share: float, error: float, units: float) -> tuple[float, float] | None:
    """Student's t interval of a share, on the scale of its logit, so that it stays within [0, 1].

    Few people often agree by chance, so a fraction of a unit is added at 0 and at 1 (`ADDED`). The interval
    is never wider than Jeffreys' binomial one, which is for units that are all 0 or 1.
    ``scripts/coverage.py`` measures its coverage on real score tables.

    Args:
        share: in [0, 1].
        error: its standard error, from `jackknife`; 0 if all units agree.
        units: number of people, or degrees of freedom plus 1.

    Returns:
        Lower and upper bound, or None for fewer than two units.

    Reference:
        Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", 2001, section 3.1.3.
    """
    from scipy.stats import beta, t

    if units < 2:
        return None
    middle = (units * share + ADDED) / (units + 2 * ADDED)
    spread = ADDED * (middle**2 + (1 - middle) ** 2) / (units * (units - 1))
    slope = middle * (1 - middle)
    half = float(t.ppf((1 + LEVEL) / 2, units - 1)) * math.sqrt(error**2 + spread) / slope
    centre = math.log(middle / (1 - middle))
    low, high = (1 / (1 + math.exp(min(-(centre + sign * half), 700.0))) for sign in (-1, 1))
    ones, zeros, tail = units * share, units * (1 - share), (1 - LEVEL) / 2
    binomial_low = float(beta.ppf(tail, ones + 0.5, zeros + 0.5)) if ones > 0 else 0.0
    binomial_high = float(beta.ppf(1 - tail, ones + 0.5, zeros + 0.5)) if zeros > 0 else 1.0
    return max(low, binomial_low), min(high, binomial_high)


class Fold(NamedTuple):
    """One forget set on one vanilla model."""

    seed: int
    fold: int


@dataclass(frozen=True)
class FoldMean:
    """Mean of a number over folds, or of the difference of two methods on the same folds.

    Attributes:
        mean: mean of the means of the clusters.
        error: its standard error; None with one cluster.
        folds: number of folds, or pairs.
        clusters: independent units among them; the degrees of freedom are one less.
    """

    mean: float
    error: float | None
    folds: int
    clusters: int

    @property
    def estimate(self) -> Estimate | None:
        """The mean with its uncertainty; None with one cluster."""
        return None if self.error is None else Estimate(self.mean, self.error, self.clusters - 1)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Student's t interval at a confidence level in (0, 1); None with one cluster."""
        estimate = self.estimate
        return None if estimate is None else estimate.interval(level)

    def p_value(self) -> float | None:
        """Two-sided p value of a true mean of 0; None with one cluster."""
        estimate = self.estimate
        return None if estimate is None else estimate.p_value()

    def detectable(self, level: float = LEVEL) -> float | None:
        """Smallest true mean that these clusters detect with power .8; None with one cluster."""
        return (
            None if self.error is None else detectable_difference(self.error, self.clusters - 1, level=level)
        )


def fold_mean(values: Mapping[Fold, float]) -> FoldMean:
    """Mean over folds, clustered by seed.

    Folds of a seed share its people and its vanilla model, so their numbers are correlated and only the seeds
    are independent: a t statistic of the seeds' means with seeds - 1 degrees of freedom. It is valid for any
    correlation within a seed, and if seeds differ in variance. With one seed the folds are the units, and the
    result is about that vanilla model only.

    Raises:
        ValueError: if there is no fold, or a number is not finite.

    Reference:
        Ibragimov and Mueller, "t-statistic based correlation and heterogeneity robust inference", 2010;
        Cameron and Miller, "A practitioner's guide to cluster-robust inference", 2015, section VI.
    """
    folds = sorted(values)
    numbers = np.array([values[fold] for fold in folds], dtype=float)
    if not len(folds) or not np.all(np.isfinite(numbers)):
        raise ValueError(f"expected finite numbers on one fold or more, got {numbers.tolist()}")
    seeds = np.array([fold[0] for fold in folds])
    by_seed = np.array([numbers[seeds == seed].mean() for seed in np.unique(seeds)])
    units = by_seed if len(by_seed) > 1 else numbers
    error = float(np.std(units, ddof=1)) / math.sqrt(len(units)) if len(units) > 1 else None
    return FoldMean(float(units.mean()), error, len(folds), len(units))


def paired_difference(first: Mapping[Fold, float], second: Mapping[Fold, float]) -> FoldMean:
    """First minus second on the folds that both ran on, clustered by seed as in `fold_mean`.

    Raises:
        ValueError: if the methods share no fold, or a number is not finite.
    """
    return fold_mean({fold: first[fold] - second[fold] for fold in first.keys() & second.keys()})


def detectable_difference(error: float, freedom: int, *, level: float = LEVEL) -> float:
    """Smallest true difference that a t test with this standard error detects with power .8.

    Args:
        error: standard error of the difference, at least 0.
        freedom: degrees of freedom, at least 1.
        level: confidence level of the test, in (0, 1).
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    quantile = float(t.ppf((1 + level) / 2, freedom))
    # The noncentral t distribution as a mean over its denominator: scipy's fails for few degrees of freedom.
    spread = np.sqrt(chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom)
    highest = 2 * quantile * float(spread.max()) + 10
    return error * float(brentq(lambda d: norm.cdf(d - quantile * spread).mean() - POWER, 0, highest))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values in [0, 1] adjusted by Holm's step-down method, in the order given, in [0, 1].

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    numbers = np.asarray(list(p_values), dtype=float)
    order = np.argsort(numbers, kind="stable")
    steps = np.maximum.accumulate(numbers[order] * np.arange(len(numbers), 0, -1))
    adjusted = np.empty(len(numbers))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other point beats, in the order given.

    Args:
        points: name to (knowledge of the forget people, knowledge of the retain people), each in [0, 1];
            less of the first and more of the second is better.
    """
    return [
        name
        for name, (forget, retain) in points.items()
        if not any(f <= forget and r >= retain and (f, r) != (forget, retain) for f, r in points.values())
    ]
