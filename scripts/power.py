"""The difference between two methods that a study of given seeds and folds would detect with power .8.

    python -m scripts.power --results data/study/results.json     # from the folds of a finished study
    python -m scripts.power --scores data/scores                  # from people drawn from one run's tables

Of every pair of methods the variances of the difference between folds of a seed and between seeds are
estimated; the standard error of a study of another size follows. Printed is the median over pairs, at the
level of one comparison planned beforehand, and at the strictest level of Holm's adjustment over all pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import typer

from efface.evaluation import LEVEL, REFERENCE_MODELS
from efface.evaluation.intervals import Fold, detectable_difference
from scripts.coverage import DESIGNS, read, simulated, sums_of

Numbers = Mapping[str, Mapping[str, Mapping[Fold, float]]]
"""Method to number to its value on each fold."""


def main(results: Path | None = None, scores: Path = Path("data/scores"), seed: int = 0) -> None:
    """Print the smallest difference that each design detects."""
    numbers = from_study(results) if results is not None else from_tables(scores, seed)
    source = (
        results if results is not None else f"drawn folds of {scores}; vanilla's training is in no spread"
    )
    pairs = list(combinations(numbers, 2))
    typer.echo(f"{len(pairs)} pairs of methods, {source}; points of 100\n")
    typer.echo(
        f"| number | seeds x folds | one comparison | Holm over {len(pairs)} pairs |\n|---|---:|---:|---:|"
    )
    for number in ("score", "forget", "retain"):
        spreads = [
            variances({fold: numbers[a][number][fold] - numbers[b][number][fold] for fold in common})
            for a, b in pairs
            if (common := numbers[a].get(number, {}).keys() & numbers[b].get(number, {}).keys())
        ]
        for seeds, folds in DESIGNS if spreads else ():
            errors = [math.sqrt(between / seeds + within / (seeds * folds)) for between, within in spreads]
            detectable = [
                np.median([detectable_difference(error, seeds - 1, level=level) for error in errors])
                for level in (LEVEL, 1 - (1 - LEVEL) / max(len(pairs), 1))
            ]
            typer.echo(f"| {number} | {seeds} x {folds} | {detectable[0]:.1f} | {detectable[1]:.1f} |")


def variances(differences: Mapping[Fold, float]) -> tuple[float, float]:
    """Variance of a difference between seeds and between folds of a seed, by analysis of variance.

    Raises:
        ValueError: if there are fewer than two seeds, or no seed has two folds.
    """
    by_seed = {
        seed: np.array([value for fold, value in differences.items() if fold.seed == seed])
        for seed in {fold.seed for fold in differences}
    }
    freedom = sum(len(values) - 1 for values in by_seed.values())
    if len(by_seed) < 2 or freedom < 1:
        raise ValueError(
            f"the study has {len(by_seed)} seeds and {len(differences)} folds: expected two seeds or more, "
            "and two folds or more on one of them"
        )
    within = sum(float(np.sum((values - values.mean()) ** 2)) for values in by_seed.values()) / freedom
    means = [float(values.mean()) for values in by_seed.values()]
    folds = len(by_seed) / sum(1 / len(values) for values in by_seed.values())
    return max(float(np.var(means, ddof=1)) - within / folds, 0.0), within


def from_study(path: Path) -> Numbers:
    """The reported folds of a study's results; parts of the score in points."""
    numbers: dict[str, dict[str, dict[Fold, float]]] = {}
    for outcome in json.loads(path.read_text(encoding="utf-8"))["outcomes"]:
        if not outcome["tuning"] and outcome["model"] not in REFERENCE_MODELS:
            for name, value in outcome["numbers"].items():
                scale = 1 if name == "score" else 100
                of_number = numbers.setdefault(outcome["model"], {}).setdefault(name, {})
                of_number[Fold(*outcome["fold"])] = scale * value
    return numbers


def from_tables(scores: Path, seed: int) -> Numbers:
    """Two hundred drawn seeds of eight folds each, from one run's tables."""
    tables = read(scores)
    methods = [name for name in tables if name not in REFERENCE_MODELS]
    replicates = simulated(sums_of(tables), methods, "visual", 200, 8, np.random.default_rng(seed))
    return {
        method: {
            name: {Fold(*at): float(value) for at, value in np.ndenumerate(values)}
            for name, values in of_method.items()
        }
        for method, of_method in replicates.items()
    }


if __name__ == "__main__":
    typer.run(main)
