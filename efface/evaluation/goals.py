"""One score that neither an untouched nor a destroyed model can win.

For a measure x on the vanilla model (v), the retrained model (g) and an unlearned model (u), each clipped to
[0, 1]:

    forget   (v - u) / (v - g)             overlap on the people to forget, by picture
    text     goal "visual": u / v          overlap on the people to forget, by name: the facts stay reachable
             goal "full":   (v - u) / (v - g)      the facts go with the face
    retain   u / v                         overlap on the people to keep, mean of both modalities
    utility  u / v                         accuracy on real people and general skills, mean of the two

and the score is 100 times their harmonic mean: nothing forgotten or nothing kept is a score of 0. The
retrained model scores near 100 under "full". The score is shown with its parts, never alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from efface.errors import EvaluationError
from efface.evaluation.comparisons import harmonic_mean
from efface.evaluation.people import CellMeans, cell_means
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

Goal = Literal["visual", "full"]
GOALS: tuple[Goal, ...] = ("visual", "full")
PARTS = ("forget", "text", "retain", "utility")
LEARNT = 0.05
"""Vanilla must lead retrained by this much on a set; below, it never learnt what should be forgotten."""
OVERLAP, ACCURACY = "rouge_l", "exact_match"
RESAMPLES = 1000
LEVEL = 0.95
Cell = tuple[str, str, str]
"""Set, modality, metric."""


@dataclass(frozen=True)
class Score:
    """A score with what it is made of.

    Attributes:
        goal: ``visual`` or ``full``.
        value: in [0, 100].
        forget, text, retain, utility: the four parts, in [0, 1].
        low, high: interval of the value over people, None with fewer than two people to forget.
    """

    goal: Goal
    value: float
    forget: float
    text: float
    retain: float
    utility: float
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | str | None]:
        """The same as plain values."""
        return asdict(self)


def cells_of(goal: Goal, *, overlap: str = OVERLAP, accuracy: str = ACCURACY) -> dict[str, list[Cell]]:
    """Part to the cells of a score table it is the mean of."""
    if goal not in GOALS:
        raise EvaluationError(f"goal is {goal!r}: expected one of {', '.join(GOALS)}")
    return {
        "forget": [("forget", "multimodal", overlap), ("unseen", "multimodal", overlap)],
        "text": [("forget", "text", overlap), ("unseen", "text", overlap)],
        "retain": [("retain", "multimodal", overlap), ("retain", "text", overlap)],
        "utility": [
            ("real", "multimodal", accuracy),
            ("real", "text", accuracy),
            ("utility", "multimodal", accuracy),
            ("utility", "text", accuracy),
        ],
    }


class Means:
    """Means of score tables that are compared more than once and not altered meanwhile: worked out once."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], tuple[pd.DataFrame, CellMeans]] = {}

    def of(
        self, table: pd.DataFrame, part: str, cells: Sequence[Cell], *, resamples: int, seed: int
    ) -> CellMeans:
        """As ``cell_means`` of the rows of one part."""
        key = (id(table), part, *cells, resamples, seed)
        if key not in self._found:  # the table is kept too: no other shall get its id
            rows = table[table["part"] == part]
            self._found[key] = table, cell_means(rows, cells, resamples=resamples, seed=seed)
        return self._found[key][1]


def unlearning_score(
    table: pd.DataFrame,
    *,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame,
    goal: Goal,
    part: str = "test",
    overlap: str = OVERLAP,
    accuracy: str = ACCURACY,
    resamples: int = RESAMPLES,
    seed: int = 0,
    means: Means | None = None,
) -> Score:
    """The score of a model against the two yardsticks.

    Args:
        table: score table of the model.
        vanilla: of the model that unlearning starts from, on the same samples.
        retrained: of the model that never saw the people to forget, on the same samples.
        goal: ``visual`` keeps the facts reachable by name, ``full`` wants them gone.
        part: rows of this part.
        overlap: metric of the forget, text and retain parts.
        accuracy: metric of the utility part. The default asks for a generated answer, where a destroyed
            model has no chance; the likeliest of four options would leave it a quarter.
        resamples: bootstrap draws of people for the interval; 0 draws none.
        seed: seed of the draws; the same for all models, which pairs them.
        means: what other calls on some of the same tables found.

    Raises:
        EvaluationError: if vanilla never learnt what should be forgotten, knows nothing that could be
            kept, or a part has no rows.
        ArtifactError: if the tables were made from different samples.
    """
    drawn = _parts(table, vanilla, retrained, goal, part, overlap, accuracy, resamples, seed, means=means)
    values = {name: float(numbers[0]) for name, numbers in drawn.items()}
    interval = _interval(_scores(drawn)[1:]) if resamples and drawn["forget"].size > 1 else None
    low, high = interval if interval is not None else (None, None)
    value = 100 * harmonic_mean([values[name] for name in PARTS])
    return Score(goal=goal, value=value, low=low, high=high, **values)


def score_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame,
    goal: Goal,
    part: str = "test",
    resamples: int = RESAMPLES,
    seed: int = 0,
    means: Means | None = None,
) -> tuple[float, tuple[float, float] | None]:
    """How much higher the first model scores, and the interval: both answer for the same drawn people."""
    scores = [
        _scores(
            _parts(table, vanilla, retrained, goal, part, OVERLAP, ACCURACY, resamples, seed, means=means)
        )
        for table in (first, second)
    ]
    difference = scores[0] - scores[1]
    return float(difference[0]), _interval(difference[1:]) if len(difference) > 1 else None


def validation_score(
    table: pd.DataFrame, *, vanilla: pd.DataFrame, retrained: pd.DataFrame, goal: Goal
) -> float:
    """What settings are chosen by: the score on the validation people, in [0, 100].

    Without utility, which asks about nobody who could be set aside; and by exact match, of which there are
    several questions for each of the sentences that ROUGE measures: the people are few.

    Raises:
        EvaluationError, ArtifactError: as for ``unlearning_score``.
    """
    names = tuple(name for name in PARTS if name != "utility")
    drawn = _parts(table, vanilla, retrained, goal, "validation", ACCURACY, ACCURACY, 0, 0, names)
    return float(_scores(drawn)[0])


def _parts(
    table: pd.DataFrame,
    vanilla: pd.DataFrame,
    retrained: pd.DataFrame,
    goal: Goal,
    part: str,
    overlap: str,
    accuracy: str,
    resamples: int,
    seed: int,
    names: Sequence[str] = PARTS,
    means: Means | None = None,
) -> dict[str, np.ndarray]:
    """Each part named, for all people (entry 0) and for each draw of people, in [0, 1]."""
    check_same_samples({"vanilla": vanilla, "retrained": retrained, "the model": table})
    cells = cells_of(goal, overlap=overlap, accuracy=accuracy)
    cells = {name: cells[name] for name in names}
    wanted = [cell for group in cells.values() for cell in group]
    means = means or Means()
    of_each = {
        name: means.of(rows, part, wanted, resamples=resamples, seed=seed)
        for name, rows in (("vanilla", vanilla), ("retrained", retrained), ("model", table))
    }
    found = {name: _available(name, group, of_each["vanilla"]) for name, group in cells.items()}
    _must_be_learnt([*found["forget"], *(found["text"] if goal == "full" else [])], of_each)
    return {name: _part(name, group, of_each, goal) for name, group in found.items()}


def _available(name: str, cells: list[Cell], vanilla: CellMeans) -> list[Cell]:
    present = [cell for cell in cells if cell in vanilla]
    if not present or (name in ("forget", "text") and cells[0] not in vanilla):
        expected = "; ".join("/".join(cell) for cell in (cells[:1] if name in ("forget", "text") else cells))
        raise EvaluationError(
            f"the part {name!r} of the score is not available: the score tables hold no value for "
            f"{expected}; "
            "score samples of that kind, or name another metric"
        )
    return present


def _must_be_learnt(cells: list[Cell], means: Mapping[str, CellMeans]) -> None:
    for cell in cells:
        v, g = (float(means[name][cell][0]) for name in ("vanilla", "retrained"))
        if v - g < LEARNT:
            raise EvaluationError(
                f"no score: vanilla scores {v:.3f} on {'/'.join(cell)}, retrained {g:.3f}; vanilla must "
                "lead by at "
                f"least {LEARNT}, or it never learnt what should be forgotten: train it longer"
            )


def _part(name: str, cells: list[Cell], means: Mapping[str, CellMeans], goal: Goal) -> np.ndarray:
    v, g, u = (_by_set(cells, means[model]) for model in ("vanilla", "retrained", "model"))
    if name == "forget" or (name == "text" and goal == "full"):
        # A draw of people among whom vanilla does not lead shows no forgetting.
        return _ratio(v - u, v - g, nothing=0.0)
    if v[0] <= 0:
        raise EvaluationError(
            f"no score: vanilla scores {v[0]:.3f} on {'; '.join('/'.join(cell) for cell in cells)}, so "
            "there is "
            f"nothing whose keeping could be measured ({name}): train it longer"
        )
    return _ratio(u, v, nothing=0.0)


def _by_set(cells: list[Cell], means: CellMeans) -> np.ndarray:
    """Mean over sets of the mean over modalities, so that a set without one of them weighs as much as the
    others.
    """
    sets = dict.fromkeys(cell[0] for cell in cells)
    return np.mean([np.mean([means[c] for c in cells if c[0] == name], axis=0) for name in sets], axis=0)


def _ratio(over: np.ndarray, under: np.ndarray, *, nothing: float) -> np.ndarray:
    safe = np.where(under > 0, under, 1.0)
    return np.where(under > 0, np.clip(over / safe, 0.0, 1.0), nothing)


def _scores(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """100 times the harmonic mean of the parts, place by place."""
    stacked = np.stack([*parts.values()])
    smallest = stacked.min(axis=0)
    safe = np.where(smallest > 0, stacked, 1.0)
    mean: Callable[..., np.ndarray] = np.mean
    return np.where(smallest > 0, 100 / mean(1 / safe, axis=0), 0.0)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
