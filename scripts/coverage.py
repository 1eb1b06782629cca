"""How often the intervals of the report hold the truth, by drawing people from real score tables.

    python -m scripts.coverage [--scores data/scores]

The people of a score table stand for everyone: means over all of them are the truth. Samples of people are
drawn with replacement, and each interval is computed as the report does; a 95 % interval promises .95. Beside
it stand a plain Student's t interval (none where all people agree) and a percentile bootstrap of 200 draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

if TYPE_CHECKING:
    import pandas as pd

SIZES = (5, 10, 20, 40)
ENOUGH = 10
"""People a set must have to stand for everyone."""


def main(scores: Path = Path("data/scores"), draws: int = 1000, seed: int = 0) -> None:
    """Print coverage by measure and number of people, over all models and sets with enough people."""
    import pandas as pd

    tables = {path.stem: pd.read_parquet(path) for path in sorted(scores.glob("*.parquet"))}
    typer.echo(f"{len(tables)} score tables of {scores}, {draws} draws each\n")
    typer.echo(
        "| interval | people | cells | as printed | plain t | bootstrap |\n|---|---:|---:|---:|---:|---:|"
    )
    for measure in ("knowledge", "exact_match", "choice_accuracy"):
        cells = [cell for table in tables.values() for cell in people_means(table, measure)]
        for size in SIZES:
            rng = np.random.default_rng([seed, size])
            results = [mean_coverage(sums, counts, size, draws, rng) for sums, counts in cells]
            if results:
                shares = " | ".join(f"{share:.3f}" for share in np.mean(results, axis=0))
                typer.echo(f"| mean of {measure} | {size} | {len(cells)} | {shares} |")
    for size in SIZES:
        rng = np.random.default_rng([seed, size])
        of_auc = [r for table in tables.values() for r in auc_coverage(table, size, max(draws // 10, 1), rng)]
        if of_auc:
            typer.echo(f"| AUC of mia_zlib | {size} | {len(of_auc)} | {np.mean(of_auc):.3f} | | |")
    rng = np.random.default_rng(seed)
    for goal, people, of_models in score_coverage(tables, max(draws // 20, 1), rng):
        typer.echo(f"| score, goal {goal} | {people} | {len(of_models)} | {np.mean(of_models):.3f} | | |")


def people_means(table: pd.DataFrame, measure: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sum and number of values per person, for every set and modality with enough people who differ."""
    from efface.evaluation.metrics import METRICS, fact_rows, with_metrics

    rows = with_metrics(table[table["part"] == "test"], [measure])
    rows = fact_rows(rows) if METRICS[measure].of_facts else rows
    cells = []
    for _, cell in rows.dropna(subset=[measure]).groupby(["set", "modality"]):
        people = cell.groupby("entity_id")[measure].agg(["sum", "count"]).astype(float)
        means = people["sum"] / people["count"]
        if len(people) >= ENOUGH and means.std() > 0:
            cells.append((people["sum"].to_numpy(), people["count"].to_numpy()))
    return cells


def mean_coverage(
    sums: np.ndarray, counts: np.ndarray, size: int, draws: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Share of draws whose interval holds the mean: as printed, plain Student's t, percentile bootstrap."""
    from efface.evaluation.intervals import jackknife, share_interval

    truth, groups = sums.sum() / counts.sum(), np.array(["people"] * size)
    hits, plain, bootstrap = 0, 0, 0
    for _ in range(draws):
        people = rng.integers(0, len(sums), size)
        s, n = sums[people], counts[people]
        replicates = np.concatenate([[s.sum() / n.sum()], (s.sum() - s) / (n.sum() - n)])
        estimate = jackknife(replicates, groups)
        interval = share_interval(float(replicates[0]), estimate.error if estimate else 0.0, size)
        hits += interval is not None and interval[0] <= truth <= interval[1]
        if estimate is not None:
            low, high = estimate.interval()
            plain += low <= truth <= high
        again = rng.integers(0, size, (200, size))
        low, high = np.quantile(s[again].sum(axis=1) / n[again].sum(axis=1), [0.025, 0.975])
        bootstrap += low <= truth <= high
    return hits / draws, plain / draws, bootstrap / draws


def auc_coverage(table: pd.DataFrame, size: int, draws: int, rng: np.random.Generator) -> list[float]:
    """Share of draws whose interval holds the AUC of retained people against people never trained on.

    Retained people are members as the people to forget are, and there are enough of them.
    """
    import pandas as pd

    from efface.evaluation.summary import REFERENCE_ATTACK, membership

    rows = table[(table["part"] == "test") & (table["modality"] == "multimodal")]
    sets = {name: rows[rows["set"] == name] for name in ("retain", "holdout")}
    people = {name: sorted(set(cell["entity_id"])) for name, cell in sets.items()}
    if any(len(members) < ENOUGH for members in people.values()):
        return []
    by_person = {name: dict(list(cell.groupby("entity_id"))) for name, cell in sets.items()}

    def drawn_table(choice: dict[str, list[str]]) -> pd.DataFrame:
        parts = [
            by_person[name][person].assign(
                entity_id=f"{person}/{i}", set="forget" if name == "retain" else "holdout"
            )
            for name, members in choice.items()
            for i, person in enumerate(members)
        ]
        return pd.concat(parts, ignore_index=True)

    truth = membership(drawn_table(people), attacks=[REFERENCE_ATTACK])[REFERENCE_ATTACK].auc
    hits, printed = 0, 0
    for _ in range(draws):
        choice = {name: list(rng.choice(members, size)) for name, members in people.items()}
        interval = membership(drawn_table(choice), attacks=[REFERENCE_ATTACK])[REFERENCE_ATTACK].interval
        if interval is not None:
            printed += 1
            hits += interval[0] <= truth <= interval[1]
    return [hits / printed] if printed else []


def score_coverage(
    tables: dict[str, pd.DataFrame], draws: int, rng: np.random.Generator
) -> list[tuple[str, int, list[float]]]:
    """Goal, people to forget, and of each unlearned model the share of draws whose interval holds its score.

    Every set is drawn at its own size, the people to forget with both their sets at once.
    """
    import pandas as pd

    from efface.errors import EvaluationError
    from efface.evaluation import REFERENCE_MODELS
    from efface.evaluation.goals import GOALS, unlearning_score
    from efface.evaluation.metrics import with_metrics

    if not set(REFERENCE_MODELS) <= tables.keys():
        return []
    sets = ["forget", "unseen", "retain", "real", "utility"]
    rows = {
        name: with_metrics(table[(table["part"] == "test") & table["set"].isin(sets)], ["knowledge"])
        for name, table in tables.items()
    }
    group = rows["vanilla"]["set"].replace({"unseen": "forget"})
    people = {name: sorted(set(rows["vanilla"].loc[group == name, "entity_id"])) for name in group.unique()}
    by_person = {name: dict(list(table.groupby("entity_id"))) for name, table in rows.items()}

    def score_of(name: str, goal: str, sample: dict[str, pd.DataFrame]) -> Any:
        references = {reference: sample[reference] for reference in REFERENCE_MODELS}
        return unlearning_score(sample[name], goal=goal, **references)  # type: ignore[arg-type]

    methods = [name for name in tables if name not in REFERENCE_MODELS]
    truth = {(goal, name): score_of(name, goal, rows).value for goal in GOALS for name in methods}
    hits: dict[tuple[str, str], list[bool]] = {key: [] for key in truth}
    for _ in range(draws):
        choice = [
            (p, i) for members in people.values() for i, p in enumerate(rng.choice(members, len(members)))
        ]
        sample = {
            name: pd.concat(
                [
                    persons[p].assign(entity_id=f"{p}/{i}", sample_id=persons[p]["sample_id"] + f"/{i}")
                    for p, i in choice
                ],
                ignore_index=True,
            )
            for name, persons in by_person.items()
        }
        for goal, name in truth:
            try:
                score = score_of(name, goal, sample)
            except EvaluationError:
                continue
            if score.low is not None:
                hits[goal, name].append(score.low <= truth[goal, name] <= score.high)
    return [
        (goal, len(people["forget"]), [float(np.mean(hits[goal, n])) for n in methods if hits[goal, n]])
        for goal in GOALS
    ]


if __name__ == "__main__":
    typer.run(main)
