"""Is it gone, or hidden? What every attacked model answers, and how far that is from the retrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from efface.attacks.outcomes import METRICS, NO_ATTACK, Outcome, attack_outcomes, largest_gaps

RELEARN = "relearn"
WORDS = {
    "exact_match": "share of answers about the people to forget, by picture, that are exactly the fact",
    "rouge_l": "ROUGE-L of answers about the people to forget, by picture",
}


@dataclass(frozen=True)
class Cell:
    """What one model answers after one variant of an attack.

    Attributes:
        value: mean of the metric, in [0, 1].
        gap: distance from the retrained model after the same; None where there is none to take.
        worst: whether no other variant of this attack brings back more.
    """

    value: float
    gap: float | None
    worst: bool


@dataclass(frozen=True)
class Row:
    """One variant of an attack.

    Attributes:
        variant: what was done.
        step: optimizer steps of relearning, None for other attacks.
        people: people asked about.
        cells: one per model, None where it was not attacked so.
    """

    variant: str
    step: int | None
    people: int
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class Robustness:
    """All attacks on all attacked models.

    Attributes:
        metric: what the numbers are.
        models: the attacked ones, in the order of the report.
        groups: attack to its variants.
        worst: model to what brings back most, over all attacks; the retrained model has none.
        curves: model to its relearning curve, budget to value.
        unavailable: model, or model and attack, to why it is not shown.
    """

    metric: str
    models: Sequence[str]
    groups: Mapping[str, Sequence[Row]]
    worst: Mapping[str, Outcome]
    curves: Mapping[str, Mapping[int, float]]
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def meaning(self) -> str:
        """The metric in words."""
        return WORDS[self.metric]

    def gap_of(self, model: str) -> float | None:
        """Largest distance from the retrained model after an attack, None where it is not known."""
        found = self.worst.get(model)
        return None if found is None else found.gap(self.metric)


def robustness(
    tables: Mapping[str, pd.DataFrame], *, unavailable: Mapping[str, str] | None = None
) -> Robustness | None:
    """What attacks brought back; None if none was run.

    Args:
        tables: attack table per attacked model.
        unavailable: what cannot be shown, with the reason.

    Raises:
        ArtifactError: if models were attacked with other questions, or other people held out.
    """
    if not tables and not unavailable:
        return None
    retrained = tables.get("retrained")
    outcomes = {model: attack_outcomes(table, retrained) for model, table in tables.items()}
    known = [m for m in METRICS if any(m in o.values for found in outcomes.values() for o in found)]
    metric = known[0] if known else METRICS[0]
    worst = {model: largest_gaps(found, metric=metric) for model, found in outcomes.items()}
    return Robustness(
        metric=metric,
        models=list(tables),
        groups=_groups(outcomes, worst, metric),
        worst={
            model: max(found.values(), key=lambda o: (o.gap(metric) is not None, o.gap(metric) or 0.0))
            for model, found in worst.items()
            if found and model != "retrained"
        },
        curves={
            model: curve
            for model, found in outcomes.items()
            if (
                curve := {
                    o.budget: o.values[metric]
                    for o in found
                    if o.attack == RELEARN and o.budget is not None and metric in o.values
                }
            )
        },
        unavailable=dict(unavailable or {}),
    )


def _groups(
    outcomes: Mapping[str, Sequence[Outcome]], worst: Mapping[str, Mapping[str, Outcome]], metric: str
) -> dict[str, list[Row]]:
    places = {(o.attack, o.variant): (o.budget, o.people) for found in outcomes.values() for o in found}
    groups: dict[str, list[Row]] = {}
    for (attack, variant), (step, people) in places.items():
        cells: list[Cell | None] = []
        for model, found in outcomes.items():
            here = next((o for o in found if (o.attack, o.variant) == (attack, variant)), None)
            if here is None or metric not in here.values:
                cells.append(None)
                continue
            gap = None if model == "retrained" else here.gap(metric)
            strongest = attack != NO_ATTACK and gap is not None and worst[model].get(attack) == here
            cells.append(Cell(here.values[metric], gap, strongest))
        groups.setdefault(attack, []).append(Row(variant, step, people, cells))
    return groups


def attack_rows(found: Robustness | None) -> pd.DataFrame:
    """One row per model and variant: ``model, attack, variant, step, people, value, gap``."""
    rows = [
        {
            "model": model,
            "attack": attack,
            "variant": row.variant,
            "step": row.step,
            "people": row.people,
            "value": cell.value,
            "gap": cell.gap,
        }
        for attack, variants in (found.groups.items() if found is not None else ())
        for row in variants
        for model, cell in zip(found.models if found is not None else (), row.cells, strict=True)
        if cell is not None
    ]
    columns = ["model", "attack", "variant", "step", "people", "value", "gap"]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def markdown_robustness(found: Robustness) -> str:
    """What brings back most from each model, as a Markdown table for a pull request."""
    lines = ["| model | worst attack | answers after it | retrained | gap |", "|---|---|---:|---:|---:|"]
    for model, outcome in found.worst.items():
        theirs = None if outcome.retrained is None else outcome.retrained.get(found.metric)
        numbers = [outcome.values[found.metric], theirs, outcome.gap(found.metric)]
        shown = ["n/a" if value is None else f"{value:.2f}" for value in numbers]
        lines.append(f"| {model} | {outcome.attack}, {outcome.variant} | {' | '.join(shown)} |")
    lines += [f"\n> {what} not available: {reason}" for what, reason in found.unavailable.items()]
    return "\n".join(lines) + "\n"
