"""Statistics over people: answers about one person rise and fall together, so people are drawn, not
questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from efface.evaluation.metrics import with_metrics

if TYPE_CHECKING:
    import pandas as pd

CellMeans = dict[tuple[str, str, str], np.ndarray]
"""Mean of a cell (set, modality, metric) for all people, and for each draw of people."""


def cell_means(
    table: pd.DataFrame, cells: Iterable[tuple[str, str, str]], *, resamples: int = 1000, seed: int = 0
) -> CellMeans:
    """Mean of each cell of a score table: of all people first, then of each draw of people with replacement.

    The people of the sets ``forget`` and ``test`` are the same and are drawn together, so are those of one
    set's modalities and metrics; other sets have draws of their own. Draws depend on the people alone, so
    tables of different models on the same samples are paired.

    Args:
        table: a score table, or the rows of one part of it.
        cells: set, modality and metric; those without any value are left out.
        resamples: draws.
        seed: seed of the draws.

    Returns:
        Arrays of shape (1 + resamples,); just (1,) for a set with fewer than two people. All have the same
        length: if one set of people cannot be drawn from, none is.
    """
    cells = list(dict.fromkeys(cells))
    metrics = sorted({metric for _, _, metric in cells})
    table = with_metrics(table, metrics)[["set", "modality", "entity_id", *metrics]]
    groups = {name: _group(name) for name, _, _ in cells}
    people = {
        group: sorted({str(e) for e in table.loc[table["set"].map(groups.get) == group, "entity_id"]})
        for group in sorted(set(groups.values()))
    }
    if any(len(members) < 2 for members in people.values() if members):
        resamples = 0
    weights = {
        group: _weights(len(members), resamples, f"{seed}/{group}")
        for group, members in people.items()
        if members
    }
    found: CellMeans = {}
    for cell in cells:
        name, modality, metric = cell
        rows = table[(table["set"] == name) & (table["modality"] == modality) & table[metric].notna()]
        if rows.empty:
            continue
        index = {entity: i for i, entity in enumerate(people[groups[name]])}
        owner = rows["entity_id"].astype(str).map(index).to_numpy(int)
        values = rows[metric].to_numpy(float)
        order = np.lexsort((values, owner))  # floating sums do not depend on the order rows came in
        sums = np.bincount(owner[order], weights=values[order], minlength=len(index))
        counts = np.bincount(owner, minlength=len(index)).astype(float)
        totals = weights[groups[name]] @ counts
        # A draw of people none of whom was asked this says nothing; the mean over all stands in for it.
        means = np.divide(weights[groups[name]] @ sums, totals, where=totals > 0, out=np.zeros_like(totals))
        found[cell] = np.where(totals > 0, means, sums.sum() / counts.sum())
    return found


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of the mean of independent runs (seeds), by Student's t; None for fewer than two.

    Raises:
        ValueError: if a value is not finite, or the level is not in (0, 1).
    """
    from scipy.stats import t

    found = [float(value) for value in values]
    if not 0 < level < 1 or any(not math.isfinite(value) for value in found):
        raise ValueError(f"expected finite values and a level in (0, 1), got {found} and {level}")
    if len(found) < 2:
        return None
    mean, spread = float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(len(found))
    half = float(t.ppf((1 + level) / 2, len(found) - 1)) * spread
    return mean - half, mean + half


def forget_retain_curve(
    points: Mapping[str, tuple[float, float]],
) -> list[dict[str, str | float | bool]]:
    """Models or checkpoints by what they still know of the people to forget and of those to keep.

    Args:
        points: name to (knowledge of the people to forget, knowledge of the people to keep), each in [0, 1].

    Returns:
        One row per name in the order given: ``name, forget, retain, on_front``. A point is on the Pareto
        front if no other knows less of the ones and at least as much of the others, or as little and more.
    """
    rows = list(points.items())
    return [
        {
            "name": name,
            "forget": forget,
            "retain": retain,
            "on_front": not any(
                other != name and f <= forget and r >= retain and (f, r) != (forget, retain)
                for other, (f, r) in rows
            ),
        }
        for name, (forget, retain) in rows
    ]


def _group(set_name: str) -> str:
    return "forget" if set_name == "unseen" else set_name


def _weights(people: int, resamples: int, seed: str) -> np.ndarray:
    """How often each person counts, (1 + resamples, people): once in row 0, else as often as drawn."""
    digits = np.frombuffer(seed.encode(), dtype=np.uint8).tolist()
    rng = np.random.default_rng(digits)
    drawn = rng.multinomial(people, np.full(people, 1 / people), size=resamples)
    return np.concatenate([np.ones((1, people)), drawn.astype(float)])
