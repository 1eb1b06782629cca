"""Results of attacks: every attacked model's answers, and how far they are from the retrained model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from efface.attacks import NO_ATTACK
from efface.attacks.outcomes import (
    METRICS,
    AttackGap,
    Outcome,
    WorstAttack,
    attack_gaps,
    attack_outcomes,
    budget_curves,
    worst_attack,
)
from efface.report.rendering import markdown_table

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
        worst: model to how far it is above retrained after its worst attack; without retrained itself.
        curves: attack with a budget to model to its curve, steps to value.
        floors: variant of the probe to what guessing and the base model reach, in [0, 1].
        seconds: attack to what all its variants took on one model, mean over models.
        unavailable: model, or model and attack, to why it is not shown.
    """

    metric: str
    models: Sequence[str]
    outcomes: Mapping[str, Mapping[str, Mapping[str, Outcome]]]
    gaps: Mapping[str, Mapping[str, AttackGap]]
    worst: Mapping[str, WorstAttack]
    curves: Mapping[str, Mapping[str, Mapping[int, float]]]
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def meaning(self) -> str:
        """The metric in words."""
        return MEANINGS[self.metric]

    def unattacked_gap(self, model: str) -> float | None:
        """How much more the unattacked model answers than the retrained one; None where that is not known."""
        outcome = self.outcomes.get(NO_ATTACK, {}).get(NO_ATTACK, {}).get(model)
        return None if outcome is None else outcome.gap(self.metric)


def collect_attacks(
    tables: Mapping[str, pd.DataFrame],
    *,
    floors: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    unavailable: Mapping[str, str] | None = None,
) -> Attacks | None:
    """Results of the attacks; None if none was run.

    Args:
        tables: attack table per attacked model.
        floors: of the probe's variants.
        seconds: attack to its cost on one model.
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
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for model, of_model in by_model.items():
        for attack, curve in budget_curves(of_model, metric).items():
            curves.setdefault(attack, {})[model] = curve
    gaps, worst = {}, {}
    for model, table in tables.items():
        if model != "retrained" and retrained is not None:
            gaps[model] = attack_gaps(table, retrained, metric=metric)
            if result := worst_attack(table, retrained, metric=metric):
                worst[model] = result
    return Attacks(
        metric=metric,
        models=list(tables),
        outcomes=outcomes,
        gaps=gaps,
        worst=worst,
        curves=curves,
        floors=dict(floors or {}),
        seconds=dict(seconds or {}),
        unavailable=dict(unavailable or {}),
    )


def attack_rows(attacks: Attacks | None) -> pd.DataFrame:
    """One row per model and variant: ``model, attack, variant, step, people, value, gap``."""
    columns = ["model", "attack", "variant", "step", "people", "value", "gap"]
    if attacks is None:
        return pd.DataFrame(columns=columns)
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
        for attack, variants in attacks.outcomes.items()
        for variant, by_model in variants.items()
        for model, outcome in by_model.items()
    ]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def markdown_attacks(attacks: Attacks) -> str:
    """The worst gap and that of each attack, mean over its variants, as a Markdown table."""
    names = [name for name in attacks.outcomes if name != NO_ATTACK]
    rows = []
    for model, gaps in attacks.gaps.items():
        cells = [f"{gaps[name].gap:+.2f}" if name in gaps else "n/a" for name in names]
        rows.append([model, f"{attacks.worst[model].gap:+.2f}" if model in attacks.worst else "n/a", *cells])
    lines = markdown_table(["gap to retrained", "worst attack", *names], rows)
    lines += [f"\n> {what} not available: {reason}" for what, reason in attacks.unavailable.items()]
    return "\n".join(lines) + "\n"
