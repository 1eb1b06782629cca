"""Results of attacks: every attacked model's answers, and how far they are from the retrained model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import pandas as pd

from efface.attacks.outcomes import (
    METRICS,
    AttackGap,
    Outcome,
    attack_gaps,
    attack_outcomes,
    relearning_curve,
)

MEANINGS = {
    "exact_match": "share of answers about the people to forget, by picture, that are exactly the fact",
    "rouge_l": "ROUGE-L of answers about the people to forget, by picture",
}


@dataclass(frozen=True)
class Attacks:
    """All attacks on all attacked models.

    Attributes:
        metric: the metric of the numbers.
        models: the attacked models, in the order of the report.
        outcomes: attack to variant to model to its outcome.
        gaps: model to attack to its gap, mean over variants; empty for the retrained model.
        curves: model to its relearning curve, steps to value.
        unavailable: model, or model and attack, to why it is not shown.
    """

    metric: str
    models: Sequence[str]
    outcomes: Mapping[str, Mapping[str, Mapping[str, Outcome]]]
    gaps: Mapping[str, Mapping[str, AttackGap]]
    curves: Mapping[str, Mapping[int, float]]
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def meaning(self) -> str:
        """The metric in words."""
        return MEANINGS[self.metric]

    def gap_of(self, model: str) -> float | None:
        """Distance from the retrained model, mean over variants, then attacks; None if there is none."""
        gaps = self.gaps.get(model)
        return fmean(gap.gap for gap in gaps.values()) if gaps else None


def collect_attacks(
    tables: Mapping[str, pd.DataFrame], *, unavailable: Mapping[str, str] | None = None
) -> Attacks | None:
    """Results of the attacks; None if none was run.

    Args:
        tables: attack table per attacked model.
        unavailable: what cannot be shown, with the reason.

    Raises:
        ArtifactError: if models were attacked with different questions or people held out.
    """
    if not tables and not unavailable:
        return None
    retrained = tables.get("retrained")
    by_model = {model: attack_outcomes(table, retrained) for model, table in tables.items()}
    everything = [outcome for outcomes in by_model.values() for outcome in outcomes]
    metric = next((m for m in METRICS if any(m in o.values for o in everything)), METRICS[0])
    outcomes: dict[str, dict[str, dict[str, Outcome]]] = {}
    for model, of_model in by_model.items():
        for outcome in of_model:
            variants = outcomes.setdefault(outcome.attack, {}).setdefault(outcome.variant, {})
            if metric in outcome.values:
                variants[model] = outcome
    curves = {model: relearning_curve(of_model, metric) for model, of_model in by_model.items()}
    return Attacks(
        metric=metric,
        models=list(tables),
        outcomes=outcomes,
        gaps={
            model: attack_gaps(table, retrained, metric=metric)
            for model, table in tables.items()
            if model != "retrained" and retrained is not None
        },
        curves={model: curve for model, curve in curves.items() if curve},
        unavailable=dict(unavailable or {}),
    )


def attack_rows(attacks: Attacks | None) -> pd.DataFrame:
    """One row per model and variant: ``model, attack, variant, step, people, value, gap``."""
    rows = [
        {
            "model": model,
            "attack": attack,
            "variant": variant,
            "step": outcome.budget,
            "people": outcome.people,
            "value": outcome.values[attacks.metric],
            "gap": None if model == "retrained" else outcome.gap(attacks.metric),
        }
        for attack, variants in (attacks.outcomes if attacks is not None else {}).items()
        for variant, by_model in variants.items()
        for model, outcome in by_model.items()
        if attacks is not None
    ]
    columns = ["model", "attack", "variant", "step", "people", "value", "gap"]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def markdown_attacks(attacks: Attacks) -> str:
    """The gap of each attack, mean over its variants, as a Markdown table for a pull request."""
    names = [name for name in attacks.outcomes if name != "none"]
    lines = ["| gap to retrained | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for model, gaps in attacks.gaps.items():
        cells = [f"{gaps[name].gap:+.2f}" if name in gaps else "n/a" for name in names]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += [f"\n> {what} not available: {reason}" for what, reason in attacks.unavailable.items()]
    return "\n".join(lines) + "\n"
