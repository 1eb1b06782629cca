"""Forget-retain curves: methods at matched forgetting, at matched retain, and over the whole front.

A point is the share of questions still right about the people to forget and about those to keep. The front of
a method at a level of forgetting is the most it keeps at any point that forgets at least so much; where it
never does, 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Points = Sequence[Mapping[str, float]]
"""Points ``forget_known, retain_known``, each in [0, 1]."""


def retain_at(points: Points, forget: float) -> float:
    """Most known of the people to keep where at most ``forget`` is known of those to forget, in [0, 1]."""
    return max((p["retain_known"] for p in points if p["forget_known"] <= forget), default=0.0)


def forgotten_at(points: Points, retain: float) -> float:
    """Most forgotten (1 - known) where at least the share ``retain`` of the first point's is kept, in [0, 1].

    The first point is the model before unlearning, so it always keeps that much.
    """
    if not points:
        raise ValueError("a forget-retain curve needs the point before unlearning, got no point")
    least = retain * points[0]["retain_known"]
    return 1 - min(p["forget_known"] for p in points if p["retain_known"] >= least)


def front_area(points: Points) -> float:
    """Area under the front of a curve, exact, in [0, 1]; 1 forgets everything and keeps everything.

    The front is a staircase, never a line between points: no model between two points was measured.
    """
    levels = sorted({0.0, 1.0, *(p["forget_known"] for p in points)})
    heights = [retain_at(points, level) for level in levels[:-1]]
    return float(np.dot(np.diff(levels), heights))
