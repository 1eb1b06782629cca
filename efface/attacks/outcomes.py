"""What attack tables say: a model's answers after each attack, and how far retrained's are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efface.evaluation.intervals import cell_replicates, jackknife
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
        budget: optimizer steps of relearning so far; None for the rest.
        people: number of people asked about; after ``relearn``, those it did not train on.
        values: metric to its mean over the forget people, in [0, 1].
        retrained: ``values`` of the retrained model after the same attack; None if it was not attacked so.
    """

    attack: str
    variant: str
    budget: int | None
    people: int
    values: Mapping[str, float]
    retrained: Mapping[str, float] | None

    def gap(self, metric: str = "exact_match") -> float | None:
        """How much more the model answers than the retrained one, in [-1, 1]; None without either number."""
        of_retrained = None if self.retrained is None else self.retrained.get(metric)
        of_model = self.values.get(metric)
        return None if of_model is None or of_retrained is None else of_model - of_retrained


@dataclass(frozen=True)
class AttackGap:
    """One attack, mean over its variants.

    Attributes:
        attack: its name.
        variants: how many it has; the unattacked model and relearning's budget 0 do not count.
        gap: mean of how much more the model answers than the retrained one, in [-1, 1].
        low, high: its interval over people; None where it cannot be estimated.
    """

    attack: str
    variants: int
    gap: float
    low: float | None
    high: float | None


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
        metrics: metrics to average; one without any value in a variant is left out there.
        sets: ``forget`` for the pictures of training, ``unseen`` for new ones, or both.
        modality: ``multimodal`` or ``text``.

    Raises:
        ArtifactError: if the two were attacked with different questions or people held out.
    """
    of_retrained = {} if retrained is None else _by_variant(retrained)
    outcomes = []
    for (attack, variant), rows in _by_variant(table).items():
        counterpart = of_retrained.get((attack, variant))
        if counterpart is not None:
            check_same_samples({f"retrained, {attack}, {variant}": counterpart, "the model": rows})
        questions = _questions(rows, sets, modality)
        if questions.empty:
            continue
        outcomes.append(
            Outcome(
                attack=attack,
                variant=variant,
                budget=_budget(rows),
                people=int(questions["entity_id"].nunique()),
                values=_means(questions, metrics),
                retrained=None
                if counterpart is None
                else _means(_questions(counterpart, sets, modality), metrics),
            )
        )
    return outcomes


def attack_gaps(
    table: pd.DataFrame,
    retrained: pd.DataFrame,
    *,
    metric: str = "exact_match",
    sets: Sequence[str] = ("forget",),
    modality: str = "multimodal",
) -> dict[str, AttackGap]:
    """The gap of each attack: the mean over the variants that both models have.

    The mean rather than the maximum: the largest of several noisy gaps is biased upwards, the more so the
    more variants an attack has.

    Args:
        table: attack table of the model.
        retrained: of the retrained model.
        metric: metric of the gap; variants without it are skipped.
        sets, modality: as for `attack_outcomes`.
    """
    of_retrained = _by_variant(retrained)
    differences: dict[str, list[np.ndarray]] = {}
    groups: dict[str, np.ndarray] = {}
    for (attack, variant), rows in _by_variant(table).items():
        counterpart = of_retrained.get((attack, variant))
        if attack == NO_ATTACK or counterpart is None or _budget(rows) == 0:
            continue
        replicates = []
        for scores in (rows, counterpart):
            questions = with_metrics(_questions(scores, sets, modality), [metric])
            values = questions.assign(set="forget", value=questions[metric].astype("float64"))
            replicates.append(cell_replicates(values, [("forget", modality)]))
        means = [replicate.means.get(("forget", modality)) for replicate in replicates]
        if means[0] is not None and means[1] is not None:
            differences.setdefault(attack, []).append(means[0] - means[1])
            groups[attack] = replicates[0].groups
    gaps = {}
    for attack, arrays in differences.items():
        mean = np.mean(arrays, axis=0)
        estimate = jackknife(mean, groups[attack])
        low, high = estimate.interval() if estimate is not None else (None, None)
        gaps[attack] = AttackGap(attack, len(arrays), float(mean[0]), low, high)
    return gaps


def relearning_curve(outcomes: Iterable[Outcome], metric: str) -> dict[int, float]:
    """Optimizer steps of relearning to the metric on the people held out."""
    return {
        outcome.budget: outcome.values[metric]
        for outcome in outcomes
        if outcome.attack == "relearn" and outcome.budget is not None and metric in outcome.values
    }


def _by_variant(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    groups = table.groupby(["attack", "variant"], sort=False)
    return {(str(attack), str(variant)): rows for (attack, variant), rows in groups}


def _budget(rows: pd.DataFrame) -> int | None:
    budgets = rows["budget"].dropna()
    return int(budgets.iloc[0]) if len(budgets) else None


def _questions(rows: pd.DataFrame, sets: Sequence[str], modality: str) -> pd.DataFrame:
    return rows[rows["set"].isin(list(sets)) & (rows["part"] == "test") & (rows["modality"] == modality)]


def _means(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    table = with_metrics(rows, metrics)
    values = {metric: table[metric].dropna().sort_values() for metric in metrics}
    return {metric: float(column.mean()) for metric, column in values.items() if len(column)}
