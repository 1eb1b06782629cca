"""What attacks brought back: a model's answers after each, beside the retrained model's after the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.evaluation.metrics import with_metrics
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

NO_ATTACK = "none"
"""The rows of the model as it is."""
METRICS = ("exact_match", "rouge_l")


@dataclass(frozen=True)
class Outcome:
    """One variant of an attack.

    Attributes:
        attack: its name, or ``none`` for the model as it is.
        variant: what was done, such as ``4 bits``.
        budget: optimizer steps of relearning so far; None for other attacks.
        people: people asked about; with ``relearn`` those it did not teach.
        values: metric to its mean over the forget people, in [0, 1].
        retrained: the same of the retrained model after the same attack; None where it was not attacked so.
    """

    attack: str
    variant: str
    budget: int | None
    people: int
    values: Mapping[str, float]
    retrained: Mapping[str, float] | None

    def gap(self, metric: str = "exact_match") -> float | None:
        """How much more the model answers than the retrained one, in [-1, 1]; None without either number."""
        theirs = None if self.retrained is None else self.retrained.get(metric)
        ours = self.values.get(metric)
        return None if ours is None or theirs is None else ours - theirs


def attack_outcomes(
    table: pd.DataFrame,
    retrained: pd.DataFrame | None,
    *,
    metrics: Sequence[str] = METRICS,
    sets: Sequence[str] = ("forget",),
    modality: str = "multimodal",
) -> list[Outcome]:
    """Every variant of every attack on a model, in the order in which they were run.

    Args:
        table: attack table of the model: a score table with ``attack``, ``variant`` and ``budget``.
        retrained: attack table of the retrained model; None where it was not attacked.
        metrics: means to take; one without any value in a variant is missing there.
        sets: ``forget`` for the pictures it saw, ``test`` for those it did not, or both.
        modality: ``multimodal`` or ``text``.

    Raises:
        ArtifactError: if both models were put to an attack, but with other questions or people held out.
    """
    theirs = {} if retrained is None else _by_variant(retrained)
    found = []
    for (attack, variant), rows in _by_variant(table).items():
        beside = theirs.get((attack, variant))
        if beside is not None:
            check_same_samples({f"retrained, {attack}, {variant}": beside, "the model": rows})
        chosen = _chosen(rows, sets, modality)
        if chosen.empty:
            continue
        budgets = rows["budget"].dropna()
        found.append(
            Outcome(
                attack=attack,
                variant=variant,
                budget=int(budgets.iloc[0]) if len(budgets) else None,
                people=int(chosen["entity_id"].nunique()),
                values=_means(chosen, metrics),
                retrained=None if beside is None else _means(_chosen(beside, sets, modality), metrics),
            )
        )
    return found


def largest_gaps(outcomes: Iterable[Outcome], *, metric: str = "exact_match") -> dict[str, Outcome]:
    """Attack to the variant that brings back most: the largest gap to the retrained model, over all budgets.

    Where the retrained model was not attacked, the variant after which the model itself answers most. The
    model as it is counts among no attack's variants, nor does relearning's budget 0.

    Args:
        outcomes: of one model.
        metric: a metric that all outcomes have; those without it are passed over.
    """
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.attack == NO_ATTACK or outcome.budget == 0 or metric not in outcome.values:
            continue
        best = found.get(outcome.attack)
        if best is None or _strength(outcome, metric) > _strength(best, metric):
            found[outcome.attack] = outcome
    return found


def _strength(outcome: Outcome, metric: str) -> tuple[bool, float]:
    gap = outcome.gap(metric)
    return (gap is not None, outcome.values[metric] if gap is None else gap)


def _by_variant(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    groups = table.groupby(["attack", "variant"], sort=False)
    return {(str(attack), str(variant)): rows for (attack, variant), rows in groups}


def _chosen(rows: pd.DataFrame, sets: Sequence[str], modality: str) -> pd.DataFrame:
    wanted = rows["set"].isin(list(sets)) & (rows["part"] == "test") & (rows["modality"] == modality)
    return rows[wanted]


def _means(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    table = with_metrics(rows, metrics)
    values = {metric: table[metric].dropna().sort_values() for metric in metrics}
    return {metric: float(column.mean()) for metric, column in values.items() if len(column)}
