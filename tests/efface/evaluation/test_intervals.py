"""Intervals over people, paired differences over folds, adjustment for many comparisons."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from efface.evaluation.intervals import (
    Fold,
    cell_replicates,
    detectable_difference,
    fold_mean,
    holm,
    jackknife,
    paired_difference,
    pareto_front,
    share_interval,
)

CELL = ("forget", "multimodal")


def values_table(sizes: list[int], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"set": name, "modality": "multimodal", "entity_id": f"p{person}", "value": rng.normal(person)}
        for name in ("forget", "unseen", "retain")
        for person, size in enumerate(sizes)
        for _ in range(size)
    ]
    return pd.DataFrame(rows)


def test_replicates_leave_out_a_person_with_all_rows():
    rows = values_table([3, 1, 2])
    replicates = cell_replicates(
        rows, [CELL, ("unseen", "multimodal"), ("retain", "multimodal"), ("real", "text")]
    )
    assert replicates.groups.tolist() == ["forget"] * 3 + ["retain"] * 3
    assert ("real", "text") not in replicates.means
    of_set = rows[rows["set"] == "forget"]
    expected = [of_set["value"].mean()]
    expected += [of_set.loc[of_set["entity_id"] != f"p{i}", "value"].mean() for i in range(3)]
    assert replicates.means[CELL][:4] == pytest.approx(expected)
    assert (replicates.means[CELL][4:] == replicates.means[CELL][0]).all()  # a person of another set
    shuffled = cell_replicates(rows.sample(frac=1, random_state=1), [CELL])
    assert np.array_equal(shuffled.means[CELL], replicates.means[CELL][:4])


def test_the_interval_of_a_mean_over_people_is_students():
    rows = values_table([2, 2, 2, 2])
    replicates = cell_replicates(rows, [CELL])
    interval = jackknife(replicates.means[CELL], replicates.groups).interval()
    people = rows[rows["set"] == "forget"].groupby("entity_id")["value"].mean()
    expected = stats.t.interval(0.95, 3, loc=people.mean(), scale=stats.sem(people))
    assert interval == pytest.approx(expected)


def test_a_difference_of_two_groups_is_welchs():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.0, 5.0, 6.0, 7.0])
    without = [np.delete(first, i).mean() - second.mean() for i in range(3)]
    without += [first.mean() - np.delete(second, i).mean() for i in range(4)]
    estimate = jackknife(np.array([first.mean() - second.mean(), *without]), np.array(["a"] * 3 + ["b"] * 4))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert estimate.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert estimate.p_value() == pytest.approx(expected.pvalue)


def test_no_interval_without_spread_or_with_one_person():
    assert jackknife(np.array([0.5, 0.5, 0.5]), np.array(["a", "a"])) is None
    one = cell_replicates(values_table([3]), [CELL])
    assert jackknife(one.means[CELL], one.groups) is None


def test_the_interval_of_a_share_is_students_on_the_logit_scale():
    low, high = share_interval(0.5, 0.1, 11)
    # Half a logit's slope at .5 is 1/4; t(0.975, 10) = 2.228139; what is added adds 1.4e-5.
    half = 2.228139 * math.sqrt(0.1**2 + 0.003 * 0.5 / 110) / 0.25
    assert (low, high) == pytest.approx((1 / (1 + math.exp(half)), 1 / (1 + math.exp(-half))))
    # Who all agree: Jeffreys' bound, the .975 quantile of Beta(.5, 5.5).
    assert share_interval(0.0, 0.0, 5) == pytest.approx((0, 0.379377), abs=1e-6)
    assert share_interval(1.0, 0.0, 5) == pytest.approx((1 - 0.379377, 1), abs=1e-6)
    assert share_interval(0.5, 0.1, 1) is None


@pytest.mark.parametrize("people", [10, 40])
def test_the_interval_of_a_share_covers_as_it_says(people):
    """Skewed people near 0, where a plain t interval covers a tenth too seldom."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(600):
        values = rng.beta(0.5, 5, people)
        interval = share_interval(values.mean(), stats.sem(values), people)
        hits.append(interval[0] <= 0.5 / 5.5 <= interval[1])
    assert 0.92 <= np.mean(hits) <= 0.99


def folds(*by_seed: list[float]) -> dict[Fold, float]:
    return {Fold(seed, fold): value for seed, row in enumerate(by_seed) for fold, value in enumerate(row)}


def test_differences_are_paired_by_fold_and_clustered_by_seed():
    first = folds([1.0, 2.0, 3.0], [2.0, 4.0], [9.0, 9.0])
    second = folds([0.0, 0.0, 0.0], [0.0, 0.0], [8.0, 8.0])
    first[Fold(7, 0)] = 99.0  # a fold of one method only
    result = paired_difference(first, second)
    means = [2.0, 3.0, 1.0]
    expected = stats.ttest_1samp(means, 0)
    assert (result.mean, result.folds, result.clusters) == (2.0, 7, 3)
    assert result.p_value() == pytest.approx(expected.pvalue)
    assert result.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.interval(0.99) == pytest.approx(tuple(expected.confidence_interval(0.99)))
    equal = paired_difference(first, first)
    assert (equal.mean, equal.p_value(), equal.interval()) == (0, 1, (0, 0))


def test_one_seed_compares_folds_and_one_fold_has_no_interval():
    result = paired_difference(folds([1.0, 2.0, 3.0]), folds([0.0, 0.0, 0.0]))
    assert result.clusters == 3 and result.interval() == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)
    )
    single = paired_difference(folds([1.0]), folds([0.0]))
    assert (single.mean, single.interval(), single.p_value(), single.detectable()) == (1.0, None, None, None)
    with pytest.raises(ValueError) as error:
        paired_difference({Fold(0, 0): 1.0}, {Fold(1, 0): 1.0})
    assert "[]" in str(error.value)


@pytest.mark.parametrize(("seeds", "correlation"), [(3, 0.0), (3, 0.7), (6, 0.3)])
def test_the_clustered_interval_covers_as_it_says_whatever_folds_of_a_seed_share(seeds, correlation):
    """Folds taken as independent would cover .55 of the time with three seeds and correlation .7."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(1500):
        shared = rng.normal(0, math.sqrt(correlation), seeds)
        noise = rng.normal(0, math.sqrt(1 - correlation), (seeds, 8))
        low, high = fold_mean(folds(*(shared[:, None] + noise).tolist())).interval()
        hits.append(low <= 0 <= high)
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("freedom", [2, 7, 23])
def test_the_smallest_detectable_difference_is_the_noncentral_ts(freedom):
    difference, quantile = detectable_difference(1.0, freedom), stats.t.ppf(0.975, freedom)
    assert stats.nct.sf(quantile, freedom, difference) == pytest.approx(0.8, abs=1e-3)
    assert detectable_difference(2.0, freedom) == pytest.approx(2 * difference)


def test_holm_golden():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


share = st.floats(0, 1)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(share, share), max_size=8))
def test_the_front_holds_exactly_what_nothing_beats(points):
    front = pareto_front(points)
    for name, (forget, retain) in points.items():
        beaten = any((f < forget and r >= retain) or (f <= forget and r > retain) for f, r in points.values())
        assert (name in front) is (not beaten)
