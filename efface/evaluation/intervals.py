"""Intervals over people, comparisons over folds and seeds, adjustment for many comparisons.

Answers about one person rise and fall together, so people are the units, never questions. Intervals over
people leave one person out at a time and use Student's t. They say how numbers would move with other people;
they leave out the noise of training, which only more seeds show.
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

ADDED = 0.01
"""Units added at either end of a share's scale."""
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


def cell_replicates(values: pd.DataFrame, cells: Iterable[Cell]) -> Replicates:
    """Mean of each cell with everyone, and without each person in turn.

    The sets ``forget`` and ``unseen`` are about the same people, who are left out of both at once. Tables of
    the same samples give the same order of people, so functions of several models' means are paired.

    Args:
        values: columns ``set, modality, entity_id, value``; rows without a value do not count.
        cells: cells to average; those without rows are missing in the result.
    """
    cells = list(dict.fromkeys(cells))
    rows = values[values["set"].isin([name for name, _ in cells])]
    group_of = rows["set"].replace({"unseen": "forget"}).astype(str)
    keys = group_of + "\0" + rows["entity_id"].astype(str)
    people = sorted(set(keys))
    index = {key: number for number, key in enumerate(people)}
    owner = keys.map(index).to_numpy(int)
    means = {}
    for cell in cells:
        in_cell = (
            (rows["set"] == cell[0]) & (rows["modality"] == cell[1]) & rows["value"].notna()
        ).to_numpy()
        if not in_cell.any():
            continue
        numbers, owners = rows["value"].to_numpy(float)[in_cell], owner[in_cell]
        order = np.lexsort((numbers, owners))  # the order of rows changes no digit
        sums = np.bincount(owners[order], weights=numbers[order], minlength=len(people))
        counts = np.bincount(owners, minlength=len(people)).astype(float)
        total, count = sums.sum(), counts.sum()
        rest = count - counts
        without = np.divide(total - sums, rest, out=np.full(len(people), np.nan), where=rest > 0)
        # Exactly the mean of everyone where the person has no row: no rounding, no spread.
        means[cell] = np.concatenate([[total / count], np.where(counts > 0, without, total / count)])
    return Replicates(means, np.array([key.partition("\0")[0] for key in people]))


@dataclass(frozen=True)
class Estimate:
    """A statistic with its uncertainty over people.

    Attributes:
        value: the statistic.
        error: its standard error, above 0.
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
        """Of a true value of 0, two-sided."""
        from scipy.stats import t

        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))


def jackknife(replicates: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """Uncertainty of a statistic from its values without each unit in turn.

    For a mean over people with equally many rows the interval is the ordinary t interval of their means. The
    degrees of freedom of several groups are Satterthwaite's.

    Args:
        replicates: the statistic of all units, then without each, shape (1 + units,).
        groups: group of each unit, shape (units,); groups vary independently.

    Returns:
        None where the statistic needs a unit, or no unit changes it.

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


def share_interval(
    share: float, error: float, units: float, *, level: float = LEVEL
) -> tuple[float, float] | None:
    """Student's t interval of a share, on the scale of its logit, so that it stays within [0, 1].

    Few people often agree by luck, so a hundredth of a unit is added at 0 and at 1. The interval is no wider
    than the exact binomial one (Clopper and Pearson), which holds where every unit is wholly 0 or 1.
    ``scripts/coverage.py`` measures how often it holds the truth on real score tables.

    Args:
        share: in [0, 1].
        error: standard error of it, from `jackknife`; 0 where all units agree.
        units: people it is over, or degrees of freedom plus 1.
        level: confidence level, in (0, 1).

    Returns:
        Lower and upper bound, or None for fewer than two units.
    """
    from scipy.stats import beta, t

    if units < 2:
        return None
    middle = (units * share + ADDED) / (units + 2 * ADDED)
    spread = ADDED * (middle**2 + (1 - middle) ** 2) / (units * (units - 1))
    slope = middle * (1 - middle)
    half = float(t.ppf((1 + level) / 2, units - 1)) * math.sqrt(error**2 + spread) / slope
    centre = math.log(middle / (1 - middle))
    low, high = (1 / (1 + math.exp(min(-(centre + sign * half), 700.0))) for sign in (-1, 1))
    ones, zeros, tail = units * share, units * (1 - share), (1 - level) / 2
    exact_low = float(beta.ppf(tail, ones, zeros + 1)) if ones > 0 else 0.0
    exact_high = float(beta.ppf(1 - tail, ones + 1, zeros)) if zeros > 0 else 1.0
    return max(low, exact_low), min(high, exact_high)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean of independent values (seeds, people); None for fewer than two.

    Raises:
        ValueError: if a value is not finite, or the level is not in (0, 1).
    """
    from scipy.stats import t

    numbers = np.asarray(list(values), dtype=float)
    if not 0 < level < 1 or not np.all(np.isfinite(numbers)):
        raise ValueError(f"expected finite values and a level in (0, 1), got {numbers.tolist()} and {level}")
    if len(numbers) < 2:
        return None
    half = float(t.ppf((1 + level) / 2, len(numbers) - 1)) * _standard_error(numbers)
    return float(numbers.mean()) - half, float(numbers.mean()) + half


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two methods on the same folds.

    Attributes:
        mean: first minus second.
        low, high: its interval; None with one cluster.
        p_value: of no difference, two-sided; None with one cluster.
        detectable: smallest true difference this number of folds shows with the power asked for.
        folds: pairs compared.
        clusters: independent units among them.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    detectable: float | None
    folds: int
    clusters: int


class Fold(NamedTuple):
    """One forget set on one vanilla model."""

    seed: int
    fold: int


def paired_difference(
    first: Mapping[Fold, float], second: Mapping[Fold, float], *, level: float = LEVEL, power: float = 0.8
) -> PairedDifference:
    """Compare two methods on the folds both ran on, clustered by seed.

    Folds of one seed share a vanilla model, so the means of seeds are the independent values. With one seed
    the folds are: the result then holds for that vanilla model only.

    Args:
        first: number of the first method on each fold.
        second: of the second method.
        level: confidence level of the interval, in (0, 1).
        power: probability with which ``detectable`` would be seen, in (0, 1).

    Raises:
        ValueError: if the methods share no fold, or a number is not finite.
    """
    from scipy.stats import t

    folds = sorted(first.keys() & second.keys())
    differences = np.array([first[fold] - second[fold] for fold in folds], dtype=float)
    if not len(folds) or not np.all(np.isfinite(differences)):
        raise ValueError(
            f"expected finite numbers of both methods on one fold or more, got {differences.tolist()} on "
            f"{len(folds)} common folds of {len(first)} and {len(second)}"
        )
    seeds = np.array([fold[0] for fold in folds])
    by_seed = np.array([differences[seeds == seed].mean() for seed in np.unique(seeds)])
    values = by_seed if len(by_seed) > 1 else differences
    mean = float(values.mean())
    if len(values) < 2:
        return PairedDifference(mean, None, None, None, None, len(folds), len(values))
    freedom, error = len(values) - 1, _standard_error(values)
    quantile = float(t.ppf((1 + level) / 2, freedom))
    p_value = float(2 * t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return PairedDifference(
        mean=mean,
        low=mean - quantile * error,
        high=mean + quantile * error,
        p_value=p_value,
        detectable=detectable_difference(error, freedom, level=level, power=power),
        folds=len(folds),
        clusters=len(values),
    )


def detectable_difference(error: float, freedom: int, *, level: float = LEVEL, power: float = 0.8) -> float:
    """Smallest true difference that a t test with this standard error finds with this power.

    Args:
        error: standard error of the difference, at least 0.
        freedom: degrees of freedom, at least 1.
        level: confidence level of the test, in (0, 1).
        power: in (0, 1).
    """
    from scipy.stats import t

    if error < 0 or freedom < 1 or not 0 < level < 1 or not 0 < power < 1:
        raise ValueError(
            f"error is {error}, freedom {freedom}, level {level}, power {power}: expected an error of at "
            "least 0, one degree of freedom or more, level and power in (0, 1)"
        )
    return float(t.ppf((1 + level) / 2, freedom) + t.ppf(power, freedom)) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down method, in the order given, in [0, 1].

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    numbers = np.asarray(list(p_values), dtype=float)
    if not np.all((numbers >= 0) & (numbers <= 1)):
        raise ValueError(f"p_values are {numbers.tolist()}: expected numbers in [0, 1]")
    order = np.argsort(numbers, kind="stable")
    steps = np.maximum.accumulate(numbers[order] * np.arange(len(numbers), 0, -1))
    adjusted = np.empty(len(numbers))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other point beats, in the order given.

    Args:
        points: name to (knowledge of the people to forget, knowledge of the people to keep), each in [0, 1];
            less of the first and more of the second is better.
    """
    return [
        name
        for name, (forget, retain) in points.items()
        if not any(f <= forget and r >= retain and (f, r) != (forget, retain) for f, r in points.values())
    ]


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
