"""Comparison of the methods of a study: paired by fold, clustered by seed.

A fold is one forget set on the vanilla model of one seed; the forget sets of a seed are disjoint. Methods are
compared on the same folds. Folds of a seed share its people and its vanilla model, so the seeds are the
independent units: the interval of a difference is Student's t over the means of the seeds. Settings are
chosen on tuning seeds, which are in no reported number. Floors are the base model's, so that all folds have
the same; retrained, where it is there, checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from efface.errors import EvaluationError
from efface.evaluation.goals import PARTS, Goal, unlearning_score, validation_score
from efface.evaluation.intervals import Fold, mean_interval

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "forget, picture": ("forget", "multimodal"),
    "forget, unseen picture": ("unseen", "multimodal"),
    "forget, by name": ("forget", "text"),
    "retain, picture": ("retain", "multimodal"),
    "retain, by name": ("retain", "text"),
    "real, picture": ("real", "multimodal"),
    "skills": ("utility", "multimodal"),
}
"""Exact match of the fact, by set and modality."""
SCORES = ("score", *PARTS)
COSTS = ("time, share of retraining", "peak memory, MiB")
"""What it takes to make the model, with the mask or the importance it needs; memory is the process's."""


@dataclass(frozen=True)
class Run:
    """The score tables of one model, with the reference models of the same seed and fraction.

    Attributes:
        fraction: share of the people to forget.
        seed: of people, weights and batches.
        model: name of the method or reference model.
        variant: the method with its settings; the name of a reference model.
        table: score table of the model.
        base: score table of the model that never met these people.
        vanilla: score table of the model that unlearning started from.
        retrained: score table of the model that never saw the people to forget.
        costs: of ``COSTS``, those that are known.
        gaps: attack to how much more of the forgotten the model answers after it than the retrained model.
    """

    fraction: float
    seed: int
    model: str
    variant: str
    table: pd.DataFrame
    base: pd.DataFrame
    vanilla: pd.DataFrame
    retrained: pd.DataFrame
    costs: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """Mean over seeds with its 95 % interval, which is None with fewer than two seeds."""

    value: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One line of the table of a study.

    Attributes:
        fraction, model: what was run.
        variant: the settings that were reported.
        variants: how many variants were compared.
        seeds: seeds whose run finished, for this variant.
        numbers: column (of ``COLUMNS``, ``SCORES`` or ``COSTS``) to its mean; a refused score is missing.
        gaps: attack to the mean of its gap, over the seeds in which the model was attacked so.
        refused: why there is no score, or why settings could not be selected; else None.
    """

    fraction: float
    model: str
    variant: str
    variants: int
    seeds: tuple[int, ...]
    numbers: Mapping[str, Mean]
    refused: str | None
    gaps: Mapping[str, Mean] = field(default_factory=dict)


def compare(runs: Sequence[Run], *, goal: Goal) -> list[Line]:
    """One line per fraction and model, in the order in which they first come.

    Raises:
        EvaluationError: if there is no run.
    """
    if not runs:
        raise EvaluationError("no run of the study finished, so there is nothing to compare")
    lines = []
    for (fraction, model), choice in choose(runs, goal=goal).items():
        own = [run for run in runs if (run.fraction, run.model) == (fraction, model)]
        variants = len({run.variant for run in own})
        line = _line(fraction, model, [run for run in own if run.variant == choice.variant], variants, goal)
        lines.append(replace(line, refused=choice.refused or line.refused))
    return lines


@dataclass(frozen=True)
class Choice:
    """The variant to report; where `refused` says why no score could select one, it is the first."""

    variant: str
    refused: str | None = None


def choose(runs: Sequence[Run], *, goal: Goal) -> dict[tuple[float, str], Choice]:
    """The variant to report, by fraction and model, in the order in which they first come."""
    choices = {}
    for fraction, model in dict.fromkeys((run.fraction, run.model) for run in runs):
        own = [run for run in runs if (run.fraction, run.model) == (fraction, model)]
        variants = list(dict.fromkeys(run.variant for run in own))
        try:
            best = _best(own, variants, goal) if len(variants) > 1 else variants[0]
        except EvaluationError as error:  # a reference model that never learnt the validation people
            choices[fraction, model] = Choice(
                variants[0], f"{model}: first settings of {len(variants)}; {error}"
            )
        else:
            choices[fraction, model] = Choice(best)
    return choices


def _best(runs: Sequence[Run], variants: Sequence[str], goal: Goal) -> str:
    """The variant with the highest mean score on the validation people, over the seeds that all have."""
    seeds = [{run.seed for run in runs if run.variant == variant} for variant in variants]
    common = set.intersection(*seeds) or set.union(*seeds)
    means = {
        variant: fmean(
            validation_score(
                run.table, base=run.base, vanilla=run.vanilla, retrained=run.retrained, goal=goal
            )
            for run in runs
            if run.variant == variant and run.seed in common
        )
        for variant in variants
        if any(run.variant == variant and run.seed in common for run in runs)
    }
    return max(means, key=lambda variant: means[variant])


def _line(fraction: float, model: str, runs: Sequence[Run], variants: int, goal: Goal) -> Line:
    numbers: dict[str, Mean] = {}
    for column, (kind, modality) in COLUMNS.items():
        values = [value for run in runs if (value := _exact_match(run.table, kind, modality)) is not None]
        if values:
            numbers[column] = _mean(values)
    for column in COSTS:
        if all(column in run.costs for run in runs):
            numbers[column] = _mean([run.costs[column] for run in runs])
    gaps = {
        attack: _mean([run.gaps[attack] for run in runs if attack in run.gaps])
        for attack in dict.fromkeys(attack for run in runs for attack in run.gaps)
    }
    refused = None
    try:
        scores = [
            unlearning_score(
                run.table, base=run.base, vanilla=run.vanilla, retrained=run.retrained, goal=goal
            )
            for run in runs
        ]
    except EvaluationError as error:  # a reference model that never learnt: shown instead of a number
        refused = str(error)
    else:
        numbers["score"] = _mean([score.value for score in scores])
        numbers |= {part: _mean([getattr(score, part) for score in scores]) for part in PARTS}
    seeds = tuple(sorted(run.seed for run in runs))
    return Line(fraction, model, runs[0].variant, variants, seeds, numbers, refused, gaps)


def _exact_match(table: pd.DataFrame, kind: str, modality: str) -> float | None:
    rows = table[(table["part"] == "test") & (table["set"] == kind) & (table["modality"] == modality)]
    values = rows["exact_match"].dropna()
    return None if values.empty else float(values.mean())


def _mean(values: Sequence[float]) -> Mean:
    return Mean(fmean(values), mean_interval(values), tuple(values))


@dataclass(frozen=True)
class StudyCell:
    """Score tables of one fold, all methods of one setting or some of them.

    Cells of the same seed and fold are taken together: the reference models may stand in one, each method in
    another.

    Attributes:
        seed: of people, weights and batches.
        fold: which of the seed's disjoint forget sets.
        tuning: whether the cell chooses settings; it is then in no reported number.
        setting: number of the setting in the method's grid while tuning, else None.
        scores: model to its score table (rows as in ``data/scores/<model>.parquet``, sets as in this fold).
            ``base`` and ``vanilla`` are needed on every fold, ``retrained`` on one fold per seed.
        curves: method to the points of its forget-retain curve: ``forget_known, retain_known`` in [0, 1], in
            order of the steps, or of the fractions of neurons pruned; the first is vanilla.
        costs: model to numbers of ``COSTS``.
        masks: method to the numbers of its mask: ``density`` and ``kappa``.
        gaps: model to attack to how much more of the forgotten it answers after it than retrained.
    """

    seed: int
    fold: int
    tuning: bool
    setting: int | None
    scores: Mapping[str, pd.DataFrame]
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gaps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The numbers of one model on one fold.

    Attributes:
        seed, fold, tuning, setting: of the cell.
        model: its name.
        numbers: of ``COLUMNS``, ``SCORES``, ``EXACT_SCORE``, ``CURVES``, ``COSTS``, those that are known.
        refused: why there is no score, else None.
    """

    seed: int
    fold: int
    tuning: bool
    setting: int | None
    model: str
    numbers: Mapping[str, float]
    refused: str | None = None


@dataclass(frozen=True)
class Setting:
    """The setting of a method to report.

    Attributes:
        index: number of the setting.
        scores: mean score of each setting that has one on every tuning fold.
        refused: why no score could choose, in which case the index is the first one's.
    """

    index: int
    scores: Mapping[int, float]
    refused: str | None = None


def cell_outcomes(cells: Sequence[StudyCell], *, goal: Goal) -> list[Outcome]:
    """Numbers of every model on every fold, floors from base.

    Raises:
        EvaluationError: if two folds of a seed share people to forget, a seed both chooses settings and is
            reported, or a model comes twice.
        ArtifactError: if the tables of a fold were made from different samples.
    """
    raise NotImplementedError


def choose_settings(cells: Sequence[StudyCell], *, goal: Goal) -> dict[str, Setting]:
    """Method to the setting with the best mean score over all tuning folds; cells that report are ignored."""
    raise NotImplementedError


def compare_study(
    cells: Sequence[StudyCell],
    *,
    goal: Goal,
    methods: Sequence[str],
    folds: Sequence[Fold],
    controls: Mapping[str, str],
) -> object:
    """Compare methods over the reported folds; `efface.report.study.StudyPage` takes the result.

    Args:
        cells: those there are, tuning or not.
        goal: what the score asks for.
        methods: methods that the study planned, controls included, in the order to show.
        folds: the folds that the study planned to report: what is missing becomes a marked gap, and a pair
            with a gap is not compared.
        controls: method to its control, such as ``{"mmunlearner": "random_mask", "manu": "random_pruning"}``.

    Raises:
        EvaluationError: as `cell_outcomes`, or if a method or its control is not among ``methods``.
    """
    raise NotImplementedError
