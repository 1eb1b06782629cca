"""What attack tables say: a model's answers after each attack, and how far retrained's are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efface.attacks import NO_ATTACK
from efface.evaluation import LEVEL
from efface.evaluation.intervals import Estimate, PersonSums, jackknife
from efface.evaluation.metrics import with_metrics
from efface.evaluation.tables import check_same_samples

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("exact_match", "rouge_l")
HALVINGS = 200
"""Halvings of the people over which `worst_attack` averages."""


@dataclass(frozen=True)
class Outcome:
    """One variant of an attack.

    Attributes:
        attack: its name, or ``none`` for the model as it is.
        variant: what was done, such as ``4 bits``.
        budget: optimizer steps so far; None for attacks without steps.
        people: number of people asked about; after ``relearn`` and ``soft_prompt``, those held out.
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
        variants: how many it has; the unattacked model and a budget of 0 do not count.
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
) -> list[Outcome]:
    """Every variant of every attack on a model, in the order in which they were run.

    Answers about the people to forget count, by pictures from training.

    Args:
        table: attack table of the model: a score table with ``attack``, ``variant`` and ``budget``.
        retrained: attack table of the retrained model; None where it was not attacked.
        metrics: metrics to average; one without any value in a variant is left out there.

    Raises:
        ArtifactError: if the two were attacked with different questions or people held out.
    """
    of_retrained = {} if retrained is None else _by_variant(retrained)
    outcomes = []
    for (attack, variant), rows in _by_variant(table).items():
        counterpart = of_retrained.get((attack, variant))
        if counterpart is not None:
            check_same_samples({f"retrained, {attack}, {variant}": counterpart, "the model": rows})
        questions = _questions(rows)
        if questions.empty:
            continue
        outcomes.append(
            Outcome(
                attack=attack,
                variant=variant,
                budget=_budget(rows),
                people=int(questions["entity_id"].nunique()),
                values=_means(questions, metrics),
                retrained=None if counterpart is None else _means(_questions(counterpart), metrics),
            )
        )
    return outcomes


@dataclass(frozen=True)
class WorstAttack:
    """Robustness in one number: how much more a model answers than the retrained one after the worst attack.

    Attributes:
        gap: in [-1, 1]; the worst variant is chosen on half of the people and counted on the others.
        interval: of the worst variant's true gap; None where it cannot be estimated.
        attack, variant: chosen most often.
        variants: how many there were to choose from, the model as it is among them.
        people: people behind it.
    """

    gap: float
    interval: tuple[float, float] | None
    attack: str
    variant: str
    variants: int
    people: int

    @property
    def sentence(self) -> str:
        """The number in words."""
        bounds = self.interval
        interval = f" ({LEVEL:.0%} interval {bounds[0]:+.2f} to {bounds[1]:+.2f})" if bounds else ""
        name = "no attack at all" if self.attack == NO_ATTACK else f"{self.attack}, {self.variant}"
        return f"{self.gap:+.2f} from retrained{interval}; worst of {self.variants}: {name}"


def attack_gaps(
    table: pd.DataFrame, retrained: pd.DataFrame, *, metric: str = "exact_match"
) -> dict[str, AttackGap]:
    """The gap of each attack: the mean over the variants that both models have.

    The mean rather than the maximum: the largest of several noisy gaps is biased upwards, the more so the
    more variants an attack has; `worst_attack` corrects for it.

    Args:
        table: attack table of the model.
        retrained: of the retrained model.
        metric: metric of the gap; variants without it are skipped.
    """
    sums = _differences(table, retrained, metric)
    means, gaps = sums.replicates().means, {}
    for attack in dict.fromkeys(attack for attack, _ in sums.sums if attack != NO_ATTACK):
        variants = [key for key in sums.sums if key[0] == attack]
        covered = np.any([sums.counts[key] > 0 for key in variants], axis=0)
        gap, estimate = _mean_gap([means[key] for key in variants], covered)
        low, high = estimate.interval() if estimate is not None else (None, None)
        gaps[attack] = AttackGap(attack, len(variants), gap, low, high)
    return gaps


def worst_attack(
    table: pd.DataFrame, retrained: pd.DataFrame, *, metric: str = "exact_match"
) -> WorstAttack | None:
    """The largest gap of all variants of all attacks, the model as it is among them; None without any.

    The largest of V noisy gaps is too large on average, so the people are halved, the worst variant of one
    half is counted on the other, and the mean is over `HALVINGS` halvings, drawn with a fixed seed. This is
    right where all variants are alike or one is far ahead, and a little too low between. For the interval let
    t be Student's quantile and g, e a variant's gap and its error over people:

        low = max_v [g_v - t(1 - a / 2V) e_v]      high = max_v [g_v + t(1 - a / 2) e_v]      a = 1 - level

    By Bonferroni all V lower bounds hold at once, and so does the largest of them for the largest gap; the
    upper bound of the truly worst variant holds alone, and the largest of all is no lower. Hence the interval
    holds the largest true gap at least as often as it says, however variants depend on each other.

    Args:
        table, retrained, metric: as for `attack_gaps`.
    """
    sums = _differences(table, retrained, metric)
    return worst_of(sums, draws=HALVINGS) if sums.sums else None


def worst_of(sums: PersonSums, *, draws: int) -> WorstAttack:
    """`worst_attack` from the sums of model minus retrained by person, one cell per attack and variant."""
    names, means, lows, highs = list(sums.sums), sums.replicates().means, [], []
    for key in names:
        gap, estimate = _mean_gap([means[key]], sums.counts[key] > 0)
        highs.append(gap if estimate is None else estimate.interval()[1])
        if estimate is not None:  # where all people agree there is no error, and so no lower bound
            lows.append(estimate.interval(1 - (1 - LEVEL) / len(names))[0])
    totals, counts = (np.stack([part[key] for key in names]) for part in (sums.sums, sums.counts))
    gap, choice = _halved_worst(totals, counts, draws)
    interval = (max(-1.0, *lows), min(1.0, max(highs))) if lows else None
    if interval is not None:
        gap = min(max(gap, interval[0]), interval[1])
    return WorstAttack(gap, interval, *names[choice], len(names), len(sums.groups))


def _halved_worst(sums: np.ndarray, counts: np.ndarray, draws: int) -> tuple[float, int]:
    """Gap of the variant that is worst on the other half, mean over halvings, and the one chosen most often.

    Args:
        sums: of the differences of each variant and person, (V, people); 0 where it does not ask about one.
        counts: number of them.
        draws: halvings.
    """
    rng, size = np.random.default_rng(0), sums.shape[1]
    totals, weights, chosen = [], [], np.zeros(len(sums))
    for _ in range(draws if size > 1 else 0):
        half = rng.permutation(size) < size // 2
        for choosing, counting in ((half, ~half), (~half, half)):
            n = counts[:, choosing].sum(axis=1)
            usable = (n > 0) & (counts[:, counting].sum(axis=1) > 0)
            means = np.divide(sums[:, choosing].sum(axis=1), n, out=np.full(len(n), -np.inf), where=usable)
            worst = int(means.argmax())
            if usable.any():
                chosen[worst] += 1
                totals.append(sums[worst, counting].sum() / counts[worst, counting].sum())
                weights.append(counting.sum())
    if not totals:  # one person: there is no other half
        means = sums.sum(axis=1) / counts.sum(axis=1)
        return float(means.max()), int(means.argmax())
    return float(np.average(totals, weights=weights)), int(chosen.argmax())


def _mean_gap(replicates: Sequence[np.ndarray], covered: np.ndarray) -> tuple[float, Estimate | None]:
    """Mean gap of variants, and its uncertainty over people.

    Args:
        replicates: of each variant the gap over all people and without each, shape (1 + people,).
        covered: whether a variant asks about each person, shape (people,).
    """
    mean = np.mean(replicates, axis=0)
    without = mean[1:][covered]
    return float(mean[0]), jackknife(np.concatenate([mean[:1], without]), np.zeros(len(without)))


def _differences(table: pd.DataFrame, retrained: pd.DataFrame, metric: str) -> PersonSums:
    """Model minus retrained, summed by person, for each attack and variant that both have.

    Without budget 0, which is the model as it is. All variants have the same people; counts are 0 where a
    variant does not ask about one.
    """
    import pandas as pd

    of_retrained, by_person = _by_variant(retrained), {}
    for key, rows in _by_variant(table).items():
        counterpart = of_retrained.get(key)
        if counterpart is None or _budget(rows) == 0:
            continue
        pair = [
            with_metrics(_questions(scores), [metric]).set_index("sample_id").sort_index()
            for scores in (rows, counterpart)
        ]
        values = [scores[metric].astype("float64") for scores in pair]
        difference = (values[0] - values[1]).dropna()
        if len(difference):
            by_person[key] = difference.groupby(pair[0].loc[difference.index, "entity_id"])
    if not by_person:
        return PersonSums({}, {}, np.array([]))
    sums = {key: groups.sum() for key, groups in by_person.items()}
    people = pd.concat(sums.values()).index.unique().sort_values()
    return PersonSums(
        {key: of_person.reindex(people, fill_value=0).to_numpy(float) for key, of_person in sums.items()},
        {k: groups.count().reindex(people, fill_value=0).to_numpy(float) for k, groups in by_person.items()},
        np.array(["people"] * len(people)),
    )


def budget_curves(outcomes: Iterable[Outcome], metric: str) -> dict[str, dict[int, float]]:
    """Attack with a budget to its curve: optimizer steps to the metric."""
    curves: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        if outcome.budget is not None and metric in outcome.values:
            curves.setdefault(outcome.attack, {})[outcome.budget] = outcome.values[metric]
    return curves


def _by_variant(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    groups = table.groupby(["attack", "variant"], sort=False)
    return {(str(attack), str(variant)): rows for (attack, variant), rows in groups}


def _budget(rows: pd.DataFrame) -> int | None:
    budgets = rows["budget"].dropna()
    return int(budgets.iloc[0]) if len(budgets) else None


def _questions(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["set"] == "forget") & (rows["part"] == "test") & (rows["modality"] == "multimodal")]


def _means(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    table = with_metrics(rows, metrics)
    values = {metric: table[metric].dropna().sort_values() for metric in metrics}
    return {metric: float(column.mean()) for metric, column in values.items() if len(column)}
