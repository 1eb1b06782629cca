"""Forget-retain curves at matched levels, and the area under their front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.evaluation.curves import forgotten_at, front_area, retain_at


def curve(*pairs):
    return [{"forget_known": forget, "retain_known": retain} for forget, retain in pairs]


POINTS = curve((1.0, 0.9), (0.6, 0.9), (0.3, 0.7), (0.4, 0.8), (0.1, 0.2))


def test_matched_forgetting_and_matched_retain():
    assert [retain_at(POINTS, level) for level in (1, 0.6, 0.45, 0.3, 0.05)] == [0.9, 0.9, 0.8, 0.7, 0]
    assert forgotten_at(POINTS, 1.0) == pytest.approx(0.4)
    assert forgotten_at(POINTS, 0.8) == pytest.approx(0.6)  # 0.72 of 0.9: the point that kept 0.8
    assert forgotten_at(POINTS[:1], 0.9) == 0
    with pytest.raises(ValueError) as error:
        forgotten_at([], 0.9)
    assert "forget-retain curve" in str(error.value) and "none" in str(error.value)


def test_the_area_by_hand_and_at_its_ends():
    by_hand = (0.3 - 0.1) * 0.2 + (0.4 - 0.3) * 0.7 + (0.6 - 0.4) * 0.8 + 0.4 * 0.9
    assert front_area(POINTS) == pytest.approx(by_hand)
    assert front_area(curve((1.0, 1.0))) == 0 and front_area(curve((1.0, 1.0), (0.0, 1.0))) == 1


share = st.integers(0, 64).map(lambda count: count / 64)


@given(st.lists(st.tuples(share, share), min_size=1, max_size=8))
def test_the_area_is_the_mean_of_the_front_over_all_levels(pairs):
    points = curve(*pairs)
    levels = (np.arange(640) + 0.5) / 640
    assert front_area(points) == pytest.approx(np.mean([retain_at(points, level) for level in levels]))
    assert front_area([*points, *curve((0.5, 0.5))]) >= front_area(points)
