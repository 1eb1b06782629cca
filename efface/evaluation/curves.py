"""Forget-retain curves: methods at matched forgetting, at matched retain, and over the whole front.

A point is the share of questions that are still right, about the people to forget and about those to retain.
The front of a method at a level of forgetting is the most it retains at any point that forgets at least that
much, and 0 if there is no such point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Points = Sequence[Mapping[str, float]]
"""Points ``forget_known, retain_known``, each in [0, 1]."""


def retain_at(points: Points, forget: float) -> float:
    """Most known about the retain people where at most ``forget`` is known about the others; in [0, 1]."""
    return max((p["retain_known"] for p in points if p["forget_known"] <= forget), default=0.0)


def forgotten_at(points: Points, retain: float) -> float:
    """Most forgotten (1 - known) where at least the share ``retain`` of the first point's stays; in [0, 1].

    The first point is the model before unlearning, which always retains that much.
    """
    if not points:
        raise ValueError("a forget-retain curve needs at least the point before unlearning, got none")
    least = retain * points[0]["retain_known"]
    return 1 - min(p["forget_known"] for p in points if p["retain_known"] >= least)


def front_area(points: Points) -> float:
    """Exact area under the front of a curve, in [0, 1]; 1 means that all is forgotten and all retained.

    The front is a staircase, not a line between points: no model between two points was measured.
    """
    levels = sorted({0.0, 1.0, *(p["forget_known"] for p in points)})
    heights = [retain_at(points, level) for level in levels[:-1]]
    return float(np.dot(np.diff(levels), heights))
