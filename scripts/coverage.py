"""How often the intervals of the report and of a study's page cover the truth, on resampled real tables.

    python -m scripts.coverage [--scores data/scores] [--half 1]

The people of a score table serve as the population: numbers over all of them are the truth. Samples of people
are drawn with replacement, and each interval is computed from them as in the product. A 95 % interval
promises .95. The form of an interval is chosen on the people of one half, and reported on those of the other.

A study is drawn likewise: for every seed the retain people, for every fold the people to forget. A seed thus
shares its people; the training of its vanilla model is the same for all, so real seeds differ more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from efface.errors import EvaluationError
from efface.evaluation import REFERENCE_MODELS
from efface.evaluation.goals import CELLS, GOALS, PARTS, Goal, _combined, _parts, score_of_means
from efface.evaluation.intervals import (
    Cell,
    Fold,
    PersonSums,
    jackknife,
    paired_difference,
    person_sums,
    share_interval,
)
from efface.evaluation.metrics import METRICS, chance, fact_rows, records, with_metrics
from efface.evaluation.summary import REFERENCE_ATTACK, SIGNALS, membership_of_signals
from efface.report.estimates import MEASURES

if TYPE_CHECKING:
    import pandas as pd

SIZES = (5, 10, 20, 40)
ENOUGH = 9
"""People a set must have to stand for everyone."""
DESIGNS = ((3, 8), (6, 4), (12, 2))
"""Seeds and folds of each."""
Sums = Mapping[str, PersonSums]
"""Model, or ``chance``, to the sums of its cells by person."""


def main(
    scores: Path = Path("data/scores"),
    draws: int = 1000,
    seed: int = 0,
    half: Annotated[
        int | None, typer.Option(min=0, max=1, help="Every second person, from this one.")
    ] = None,
) -> None:
    """Print coverage by interval and number of people."""
    tables = read(scores)
    typer.echo(f"{len(tables)} score tables of {scores}, {draws} draws each\n")
    typer.echo("| interval | people | cases | coverage | lowest |\n|---|---:|---:|---:|---:|")

    def show(title: str, size: object, shares: Sequence[float | None]) -> None:
        if hits := [share for share in shares if share is not None]:
            typer.echo(f"| {title} | {size} | {len(hits)} | {np.mean(hits):.3f} | {min(hits):.3f} |")

    for size in SIZES:
        rng = np.random.default_rng([seed, size])
        for measure in MEASURES:
            cells = [c for table in tables.values() for c in people_means(table, measure, half)]
            show(f"mean of {measure}", size, [mean_coverage(*c, size, draws, rng) for c in cells])
        gaps = [gap for name in tables for gap in gap_people(tables, name, half)]
        show("attack gap", size, [gap_coverage(gap, size, draws, rng) for gap in gaps])
        aucs = [signals for table in tables.values() for signals in signals_of(table, half)]
        show("AUC of mia_zlib", size, [auc_coverage(s, size, max(draws // 4, 1), rng) for s in aucs])
    if not set(REFERENCE_MODELS) <= tables.keys():
        return
    rng, sums = np.random.default_rng(seed), sums_of(tables)
    methods = [name for name in tables if name not in REFERENCE_MODELS]
    for goal in GOALS:
        for size in SIZES[:3]:
            scores_of = [score_coverage(sums, name, goal, size, max(draws // 2, 1), rng) for name in methods]
            show(f"score, goal {goal}", size, scores_of)
    for seeds, folds in DESIGNS:
        numbers = simulated(sums, methods, "visual", draws * seeds, folds, rng)
        for number in ("score", "forget", "retain"):
            pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
            shares = [study_coverage(numbers[a][number] - numbers[b][number], seeds) for a, b in pairs]
            show(f"paired difference of {number}", f"{seeds} seeds x {folds} folds", shares)


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Score tables by model; people set aside for validation are people too."""
    import pandas as pd

    from tasks.rescore import RENAMED

    return {
        path.stem: with_metrics(
            (table := pd.read_parquet(path)).assign(set=table["set"].replace(RENAMED), part="test"),
            [*MEASURES],
        )
        for path in sorted(folder.glob("*.parquet"))
    }


def people_means(
    table: pd.DataFrame, measure: str, half: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sum and number of values per person, for every set and modality with enough people who differ."""
    rows = fact_rows(table) if METRICS[measure].of_facts else table
    for _, cell in rows.dropna(subset=[measure]).groupby(["set", "modality"]):
        people = cell.groupby("entity_id")[measure].agg(["sum", "count"]).astype(float)
        people = people if half is None else people.iloc[half::2]
        if len(people) >= ENOUGH and (people["sum"] / people["count"]).std() > 0:
            yield people["sum"].to_numpy(), people["count"].to_numpy()


def mean_coverage(
    sums: np.ndarray, counts: np.ndarray, size: int, draws: int, rng: np.random.Generator
) -> float:
    """Share of draws whose interval holds the mean."""
    truth, groups, hits = sums.sum() / counts.sum(), np.array(["people"] * size), 0
    for people in rng.integers(0, len(sums), (draws, size)):
        s, n = sums[people], counts[people]
        means = np.concatenate([[s.sum() / n.sum()], (s.sum() - s) / (n.sum() - n)])
        estimate = jackknife(means, groups)
        interval = share_interval(float(means[0]), estimate.error if estimate else 0.0, size)
        hits += interval is not None and interval[0] <= truth <= interval[1]
    return hits / draws


def gap_people(tables: Mapping[str, pd.DataFrame], name: str, half: int | None) -> Iterator[np.ndarray]:
    """Difference of a method from vanilla by person, in place of an attack's gap: it is computed alike, of
    exact match by picture, and there are enough of the people who stay."""
    if name in REFERENCE_MODELS or "vanilla" not in tables:
        return
    means = [
        rows[(rows["set"] == "retain") & (rows["modality"] == "multimodal")]
        .groupby("entity_id")["exact_match"]
        .mean()
        for rows in (tables[name], tables["vanilla"])
    ]
    differences = (means[0] - means[1]).dropna().to_numpy(float)
    differences = differences if half is None else differences[half::2]
    if len(differences) >= ENOUGH and differences.std() > 0:
        yield differences


def gap_coverage(differences: np.ndarray, size: int, draws: int, rng: np.random.Generator) -> float:
    """Share of printed intervals that hold the mean difference; none is printed where all people agree."""
    truth, groups, hits = differences.mean(), np.array(["people"] * size), []
    for people in rng.integers(0, len(differences), (draws, size)):
        values = differences[people]
        means = np.concatenate([[values.mean()], (values.sum() - values) / (size - 1)])
        estimate = jackknife(means, groups)
        if estimate is not None:
            low, high = estimate.interval()
            hits.append(low <= truth <= high)
    return float(np.mean(hits))


def signals_of(table: pd.DataFrame, half: int | None) -> Iterator[dict[str, list[list[float]]]]:
    """Membership signals by person of retained people (members, as people to forget are) and of holdout."""
    rows, (_, signal) = table[table["modality"] == "multimodal"], SIGNALS[REFERENCE_ATTACK]
    signals = {
        group: [
            [signal(row) for row in records(of_person)]
            for _, of_person in rows[rows["set"] == kind].groupby("entity_id")
        ]
        for group, kind in (("forget", "retain"), ("holdout", "holdout"))
    }
    signals = {group: people if half is None else people[half::2] for group, people in signals.items()}
    if min(map(len, signals.values())) >= ENOUGH * (0.6 if half is not None else 1):
        yield signals


def auc_coverage(
    signals: Mapping[str, list[list[float]]], size: int, draws: int, rng: np.random.Generator
) -> float | None:
    """Share of draws whose interval holds the AUC, None without intervals; holdout people at their number."""
    everyone = {group: {str(i): rows for i, rows in enumerate(p)} for group, p in signals.items()}
    truth, hits = membership_of_signals(everyone).auc, []
    for _ in range(draws):
        sample = {
            group: {
                str(i): people[p]
                for i, p in enumerate(
                    rng.integers(0, len(people), size if group == "forget" else len(people))
                )
            }
            for group, people in signals.items()
        }
        interval = membership_of_signals(sample).interval
        if interval is not None:
            hits.append(interval[0] <= truth <= interval[1])
    return float(np.mean(hits)) if hits else None


def sums_of(tables: Mapping[str, pd.DataFrame]) -> dict[str, PersonSums]:
    """Knowledge of facts by person, in the cells of the score, of every model, and the level of chance."""
    cells = [cell for part in PARTS for cell in CELLS[part]]
    rows = {name: fact_rows(table) for name, table in tables.items()}
    values = {name: table["knowledge"] for name, table in rows.items()}
    rows["chance"], values["chance"] = rows["vanilla"], chance(rows["vanilla"])
    return {
        name: person_sums(
            table[["set", "modality", "entity_id"]].assign(value=values[name].astype(float)), cells
        )
        for name, table in rows.items()
    }


def drawn(sums: Sums, people: np.ndarray) -> dict[str, Mapping[Cell, np.ndarray]]:
    """Means of these people, then without each, by model."""
    return {
        name: PersonSums(
            {cell: values[people] for cell, values in of_model.sums.items()},
            {cell: values[people] for cell, values in of_model.counts.items()},
            of_model.groups[people],
        )
        .replicates()
        .means
        for name, of_model in sums.items()
    }


def score_coverage(
    sums: Sums, name: str, goal: Goal, size: int, draws: int, rng: np.random.Generator
) -> float | None:
    """Share of draws of so many people to forget whose interval holds the score; other sets at their size."""
    groups = sums["vanilla"].groups
    used = {key: sums[key] for key in ("vanilla", "base", "retrained", "chance")} | {"model": sums[name]}
    truth = score_of_means(drawn(used, np.arange(len(groups))), groups, goal=goal, measure="knowledge").value
    members = {group: np.flatnonzero(groups == group) for group in dict.fromkeys(groups.tolist())}
    hits = []
    for _ in range(draws):
        people = np.concatenate(
            [rng.choice(p, size if group == "forget" else len(p)) for group, p in members.items()]
        )
        try:
            score = score_of_means(drawn(used, people), groups[people], goal=goal, measure="knowledge")
        except EvaluationError:
            continue
        if score.low is not None and score.high is not None:
            hits.append(score.low <= truth <= score.high)
    return float(np.mean(hits)) if hits else None


def simulated(
    sums: Sums, methods: list[str], goal: Goal, seeds: int, folds: int, rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """Score and parts of each method on drawn folds, arrays of shape (seeds, folds), floors from base."""
    groups = sums["vanilla"].groups
    weights = np.zeros((seeds, folds, len(groups)), np.float32)
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group)
        if group == "forget":  # other people on every fold
            weights[:, :, members] = rng.multinomial(
                len(members), np.full(len(members), 1 / len(members)), (seeds, folds)
            )
        else:  # the people who stay are a seed's
            shares = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), seeds)
            weights[:, :, members] = shares[:, None, :]

    def means(name: str) -> dict[Cell, np.ndarray]:
        of_model = sums[name]
        return {
            cell: ((weights @ values) / np.maximum(weights @ of_model.counts[cell], 1e-9)).ravel()
            for cell, values in of_model.sums.items()
        }

    references = {name: means(name) for name in ("vanilla", "base", "chance")}
    numbers = {}
    for method in methods:
        parts, _ = _parts(references | {"model": means(method)}, goal, "knowledge")
        arrays = {"score": _combined(parts), **{name: 100 * values for name, values in parts.items()}}
        numbers[method] = {name: values.reshape(seeds, folds) for name, values in arrays.items()}
    return numbers


def study_coverage(differences: np.ndarray, seeds: int) -> float:
    """Share of studies of so many seeds whose interval holds the mean difference of all of them."""
    truth, hits = differences.mean(), []
    for first in range(0, len(differences), seeds):
        study = differences[first : first + seeds]
        values = {Fold(*at): float(value) for at, value in np.ndenumerate(study)}
        interval = paired_difference(values, dict.fromkeys(values, 0.0)).interval()
        hits.append(interval is not None and interval[0] <= truth <= interval[1])
    return float(np.mean(hits))


if __name__ == "__main__":
    typer.run(main)
