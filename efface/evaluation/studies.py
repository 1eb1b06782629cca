"""Comparison of the methods of a study: paired by fold, clustered by seed.

A fold is one forget set on the vanilla model of one seed; the forget sets of a seed are disjoint. Methods are
compared on the same folds. Folds of a seed share its people and its vanilla model, so the seeds are the
independent units: the interval of a difference is Student's t over the means of the seeds. Settings are
chosen on tuning seeds, which are in no reported number. Floors are the base model's, the same for all folds;
retrained, if there is one, checks them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from efface.errors import EvaluationError
from efface.evaluation import LEVEL, REFERENCE_MODELS
from efface.evaluation.curves import Points, forgotten_at, front_area, retain_at
from efface.evaluation.goals import MEASURES, PARTS, Goal, unlearning_score
from efface.evaluation.intervals import Fold, FoldMean, fold_mean, holm, paired_difference
from efface.evaluation.metrics import with_metrics
from efface.evaluation.tables import check_same_samples

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
"""Cost of making the model, including the mask or importance it needs; memory is the process's."""
EXACT_SCORE = "score by exact match"
MATCHED_FORGET, MATCHED_RETAIN = 0.25, 0.9
"""Levels at which curves are compared: known about the forget people; retained, as a share of vanilla's."""
CURVES: dict[str, Callable[[Points], float]] = {
    "area under the front": front_area,
    f"kept where {MATCHED_FORGET:.0%} is left": partial(retain_at, forget=MATCHED_FORGET),
    f"forgotten where {MATCHED_RETAIN:.0%} is kept": partial(forgotten_at, retain=MATCHED_RETAIN),
}
"""Number of a forget-retain curve to its function; all in [0, 1], higher is better."""
MASKS = ("density", "kappa")
WORST = "worst attack"
"""Name of that gap in a cell."""
WITHSTOOD = "forgotten after the worst attack"
"""1 minus the gap to the retrained model after the worst attack, at most 1: who knows nobody has 1, and to
answer less than retrained earns nothing."""
PAIRED = (*SCORES, WITHSTOOD, *CURVES)
"""Numbers by which methods are compared in pairs; higher is better."""
FLOOR_HOLDS = 0.9
"""Least forgetting of the retrained model, measured from base, with which base serves as the floor."""
Verdict = Literal["first", "second", "not settled", "measures disagree", "gap"]
"""Which of a pair is better, or why none is."""


@dataclass(frozen=True)
class StudyCell:
    """Score tables of one fold: all methods of one setting, or some of them.

    Cells of the same seed and fold are merged: one may hold the reference models, others a method each.

    Attributes:
        seed: seed of people, weights and batches.
        fold: which of the seed's disjoint forget sets.
        tuning: whether the cell chooses settings; it is then in no reported number.
        setting: number of the setting in the method's grid while tuning, else None.
        scores: model to its score table (rows as in ``data/scores/<model>.parquet``, sets as in this fold).
            ``base`` and ``vanilla`` are needed on every fold, ``retrained`` on one fold per seed.
        curves: method to the points of its forget-retain curve: ``forget_known, retain_known`` in [0, 1], in
            order of the steps, or of the fractions of neurons pruned; the first is vanilla.
        costs: model to numbers of ``COSTS``.
        masks: method to the numbers of its mask: ``density`` and ``kappa``.
        gaps: model to attack to how much more it answers after the attack than retrained does.
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
        fold: its seed and number.
        tuning, setting: those of the cell.
        model: its name.
        numbers: the known ones of ``COLUMNS``, ``SCORES``, ``EXACT_SCORE``, ``CURVES``, ``MASKS`` and
            ``COSTS``, gaps after attacks, and ``WITHSTOOD``.
        refused: why there is no score, else None.
    """

    fold: Fold
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
        refused: why no score could choose; the index is then that of the first setting.
    """

    index: int
    scores: Mapping[int, float]
    refused: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two methods compared by one number on the same folds.

    Attributes:
        number: one of ``PAIRED``.
        first, second: the methods.
        difference: first minus second; None if a fold is missing.
        p_value: of no difference, Holm-adjusted over the pairs of its family by that number: the methods with
            their controls, planned before any result, or all other pairs; None without an interval.
        detectable: smallest true difference that this study detects at the adjusted level with power .8.
        verdict: which is better, or why none is.
        folds: folds that both have.
    """

    number: str
    first: str
    second: str
    difference: FoldMean | None
    p_value: float | None
    detectable: float | None
    verdict: Verdict
    folds: int

    def seen_from(self, method: str) -> Pair:
        """The same pair with this method first."""
        if method == self.first:
            return self
        turned: dict[Verdict, Verdict] = {"first": "second", "second": "first"}
        difference = self.difference and replace(self.difference, mean=-self.difference.mean)
        verdict = turned.get(self.verdict, self.verdict)
        return replace(self, first=self.second, second=self.first, difference=difference, verdict=verdict)


@dataclass(frozen=True)
class MethodLine:
    """One model over the reported folds.

    Attributes:
        model: its name.
        numbers: name to its mean over the folds that have it.
        folds: number of folds with a score, or with any number if the model has no score.
        refused: reasons why a fold has no score.
    """

    model: str
    numbers: Mapping[str, FoldMean]
    folds: int
    refused: tuple[str, ...]


@dataclass(frozen=True)
class StudyComparison:
    """The result of a study.

    Attributes:
        goal: goal of the score.
        folds: the folds that were planned to be reported.
        lines: reference models, then methods, in the order planned; never sorted by a number.
        pairs: all pairs of methods, by every number of ``PAIRED`` that any method has.
        controls: method to its control.
        settings: method to the setting that the tuning folds chose.
        floors: for each fold with a retrained model, its forgetting measured from base; below ``FLOOR_HOLDS``
            base is no floor.
        gaps: what is missing, in words.
        fronts: method to its curve on each fold.
        outcomes: the numbers of every model on every fold, including tuning folds.
    """

    goal: Goal
    folds: tuple[Fold, ...]
    lines: list[MethodLine]
    pairs: list[Pair]
    controls: Mapping[str, str]
    settings: Mapping[str, Setting]
    floors: Mapping[Fold, float]
    gaps: list[str]
    fronts: Mapping[str, Mapping[Fold, Points]]
    outcomes: Sequence[Outcome]

    def of_control(self, method: str) -> list[Pair]:
        """The pairs of a method and its control, the method first."""
        names = {method, self.controls[method]}
        return [pair.seen_from(method) for pair in self.pairs if {pair.first, pair.second} == names]


def cell_outcomes(cells: Sequence[StudyCell], *, goal: Goal) -> list[Outcome]:
    """Numbers of every model on every fold, floors from base.

    Raises:
        EvaluationError: if two folds of a seed share people to forget, a seed both chooses settings and is
            reported, or a method occurs twice.
        ArtifactError: if the tables of a fold were made from different samples.
    """
    outcomes: dict[tuple[Fold, int | None, str], Outcome] = {}
    people: dict[Fold, set[str]] = {}
    for fold, group in _by_fold(cells).items():
        references = {
            name: with_metrics(cell.scores[name], list(MEASURES))
            for cell in reversed(group)
            for name in REFERENCE_MODELS
            if name in cell.scores
        }
        for cell in group:
            for model, table in cell.scores.items():
                key = fold, cell.setting, model
                if model in references:
                    key, table = (fold, None, model), references[model]
                elif key in outcomes:
                    raise EvaluationError(f"{_words(fold)} has two score tables of {model}: expected one")
                if key not in outcomes:
                    outcomes[key] = replace(
                        _outcome(cell, fold, model, table, references, goal), setting=key[1]
                    )
        if references:
            table = next(iter(references.values()))
            people[fold] = set(table.loc[table["set"] == "forget", "entity_id"].astype(str))
    _check_disjoint(people)
    return list(outcomes.values())


def _by_fold(cells: Sequence[StudyCell]) -> dict[Fold, list[StudyCell]]:
    groups: dict[Fold, list[StudyCell]] = {}
    for cell in cells:
        groups.setdefault(Fold(cell.seed, cell.fold), []).append(cell)
    tuning, reported = ({cell.seed for cell in cells if cell.tuning is kind} for kind in (True, False))
    if tuning & reported:
        raise EvaluationError(
            f"seeds {sorted(tuning & reported)} both choose settings and are reported: give the study tuning "
            "seeds of their own"
        )
    return groups


def _check_disjoint(people: Mapping[Fold, set[str]]) -> None:
    for first, second in combinations(people, 2):
        shared = people[first] & people[second]
        if first.seed == second.seed and shared:
            raise EvaluationError(
                f"{_words(first)} and {_words(second)} both forget {len(shared)} people, such as "
                f"{min(shared)}: expected disjoint forget sets in the folds of a seed; score every model on "
                "its own fold"
            )


def _outcome(
    cell: StudyCell,
    fold: Fold,
    model: str,
    table: pd.DataFrame,
    references: Mapping[str, pd.DataFrame],
    goal: Goal,
) -> Outcome:
    numbers: dict[str, float] = {}
    for column, (kind, modality) in COLUMNS.items():
        value = _exact_match(table, kind, modality)
        if value is not None:
            numbers[column] = value
    refused = None
    missing = [name for name in ("base", "vanilla") if name not in references]
    if missing:
        refused = f"{_words(fold)} has no score table of {' and '.join(missing)}"
    else:
        base, vanilla = references["base"], references["vanilla"]
        check_same_samples({"base": base, model: table})
        try:
            scores = [
                unlearning_score(
                    table, base=base, vanilla=vanilla, retrained=None, goal=goal, measure=measure
                )
                for measure in MEASURES
            ]
        except EvaluationError as error:  # vanilla never learnt the facts: shown instead of a number
            refused = f"{_words(fold)}: {error}"
        else:
            numbers |= {"score": scores[0].value, EXACT_SCORE: scores[1].value}
            numbers |= {part: getattr(scores[0], part) for part in PARTS}
    if points := cell.curves.get(model):
        numbers |= {name: function(points) for name, function in CURVES.items()}
    numbers |= {**cell.costs.get(model, {}), **cell.masks.get(model, {})}
    gaps = cell.gaps.get(model, {})
    numbers |= {f"{attack}, gap": gap for attack, gap in gaps.items()}
    if WORST in gaps:
        numbers[WITHSTOOD] = 1 - max(gaps[WORST], 0.0)
    return Outcome(fold, cell.tuning, cell.setting, model, numbers, refused)


def _exact_match(table: pd.DataFrame, kind: str, modality: str) -> float | None:
    rows = table[(table["part"] == "test") & (table["set"] == kind) & (table["modality"] == modality)]
    values = rows["exact_match"].dropna()
    return None if values.empty else float(values.mean())


def choose_settings(cells: Sequence[StudyCell], *, goal: Goal) -> dict[str, Setting]:
    """The setting of each method with the best mean score over all tuning folds; other cells are ignored.

    A setting that lacks a score on some tuning fold (it diverged, or was not run) cannot be chosen.
    """
    outcomes = cell_outcomes([cell for cell in cells if cell.tuning], goal=goal)
    return _settings(outcomes)


def _settings(outcomes: Sequence[Outcome]) -> dict[str, Setting]:
    tuning = [outcome for outcome in outcomes if outcome.tuning and outcome.setting is not None]
    folds = {outcome.fold for outcome in tuning}
    selected = {}
    for method in dict.fromkeys(outcome.model for outcome in tuning):
        model_outcomes = [outcome for outcome in tuning if outcome.model == method]
        indices = sorted({outcome.setting for outcome in model_outcomes if outcome.setting is not None})
        scores = {}
        for index in indices:
            values = [
                o.numbers["score"] for o in model_outcomes if o.setting == index and "score" in o.numbers
            ]
            if len(values) == len(folds):
                scores[index] = fmean(values)
        if scores:
            selected[method] = Setting(max(scores, key=lambda index: scores[index]), scores)
        else:
            reason = next(
                (o.refused for o in model_outcomes if o.refused), "a tuning fold is missing for each setting"
            )
            selected[method] = Setting(
                indices[0], {}, f"{method}: first of {len(indices)} settings; {reason}"
            )
    return selected


def compare_study(
    cells: Sequence[StudyCell],
    *,
    goal: Goal,
    methods: Sequence[str],
    folds: Sequence[Fold],
    controls: Mapping[str, str],
) -> StudyComparison:
    """Compare methods over the reported folds; `efface.report.study_page.StudyPage` takes the result.

    Args:
        cells: all finished cells, tuning or not.
        goal, methods, folds, controls: as for `compare_outcomes`.

    Raises:
        EvaluationError: as `cell_outcomes` and `compare_outcomes`.
        ArtifactError: as `cell_outcomes`.
    """
    outcomes = cell_outcomes(cells, goal=goal)
    return compare_outcomes(
        outcomes,
        goal=goal,
        methods=methods,
        folds=folds,
        controls=controls,
        fronts={
            method: {
                Fold(cell.seed, cell.fold): cell.curves[method]
                for cell in cells
                if not cell.tuning and cell.curves.get(method)
            }
            for method in methods
        },
    )


def compare_outcomes(
    outcomes: Sequence[Outcome],
    *,
    goal: Goal,
    methods: Sequence[str],
    folds: Sequence[Fold],
    controls: Mapping[str, str],
    fronts: Mapping[str, Mapping[Fold, Points]],
) -> StudyComparison:
    """The comparison from the numbers of every model on every fold.

    Args:
        outcomes: result of `cell_outcomes`.
        goal: goal of the score.
        methods: the planned methods, controls included, in display order.
        folds: the folds planned to be reported; a missing one becomes a marked gap, and a pair with a gap is
            not compared.
        controls: method to its control, such as ``{"mmunlearner": "random_mask", "manu": "random_pruning"}``.
        fronts: method to its forget-retain curve on each fold, for the figure.

    Raises:
        EvaluationError: if there is no reported cell, one belongs to a fold that was not planned, or a
            method or its control is not among ``methods``.
    """
    unplanned = sorted({*controls, *controls.values()} - set(methods))
    if unplanned:
        raise EvaluationError(
            f"controls names {', '.join(unplanned)}, which the study does not run: expected methods and "
            f"their controls among {', '.join(methods)}"
        )
    reported = [outcome for outcome in outcomes if not outcome.tuning]
    if not reported:
        raise EvaluationError("no reported cell of the study has finished, so there is nothing to compare")
    planned = tuple(sorted(set(folds)))
    strange = sorted({outcome.fold for outcome in reported} - set(planned))
    if strange:
        raise EvaluationError(
            f"score tables of {_words(strange[0])}, which is not among the study's {len(planned)} folds: "
            "compare the tables of one study"
        )
    numbers = _by_number(reported)
    floors = {
        o.fold: _forgetting(o, goal) for o in reported if o.model == "retrained" and "forget" in o.numbers
    }
    return StudyComparison(
        goal=goal,
        folds=planned,
        lines=[_method_line(m, reported) for m in (*REFERENCE_MODELS, *methods)],
        pairs=[
            pair
            for number in PAIRED
            if set(methods) & numbers.get(number, {}).keys()
            for pair in _pairs(number, numbers, methods, planned, controls)
        ],
        controls=controls,
        settings=_settings(outcomes),
        floors=floors,
        gaps=_gaps(reported, methods, planned, floors),
        fronts={method: of_fold for method, of_fold in fronts.items() if of_fold},
        outcomes=outcomes,
    )


def _by_number(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[Fold, float]]]:
    """Number to method to fold to value."""
    numbers: dict[str, dict[str, dict[Fold, float]]] = {}
    for outcome in outcomes:
        for number, value in outcome.numbers.items():
            numbers.setdefault(number, {}).setdefault(outcome.model, {})[outcome.fold] = value
    return numbers


def _forgetting(outcome: Outcome, goal: Goal) -> float:
    parts = ("forget", "text") if goal == "full" else ("forget",)
    return min(outcome.numbers[part] for part in parts)


def _method_line(model: str, outcomes: Sequence[Outcome]) -> MethodLine:
    model_outcomes = [outcome for outcome in outcomes if outcome.model == model]
    values = {number: of_model[model] for number, of_model in _by_number(model_outcomes).items()}
    scored = [outcome for outcome in model_outcomes if "score" in outcome.numbers]
    return MethodLine(
        model,
        {number: fold_mean(of_fold) for number, of_fold in values.items()},
        len(scored or model_outcomes),
        tuple(dict.fromkeys(outcome.refused for outcome in model_outcomes if outcome.refused)),
    )


def _pairs(
    number: str,
    numbers: Mapping[str, Mapping[str, Mapping[Fold, float]]],
    methods: Sequence[str],
    planned: Sequence[Fold],
    controls: Mapping[str, str],
) -> list[Pair]:
    """All pairs by one number, in the order of the methods."""
    pairs = list(combinations(methods, 2))
    planned_pairs = [
        pair for pair in pairs if controls.get(pair[0]) == pair[1] or controls.get(pair[1]) == pair[0]
    ]
    families = planned_pairs, [pair for pair in pairs if pair not in planned_pairs]
    compared = [pair for family in families for pair in _family(number, numbers, family, planned)]
    return sorted(compared, key=lambda pair: pairs.index((pair.first, pair.second)))


def _family(
    number: str,
    numbers: Mapping[str, Mapping[str, Mapping[Fold, float]]],
    pairs: Sequence[tuple[str, str]],
    planned: Sequence[Fold],
) -> list[Pair]:
    """Pairs adjusted together; pairs with a gap count with p = 1, so the adjustment stays the same."""
    values = numbers[number]
    exact = numbers.get(EXACT_SCORE, {})
    common = [set(planned) & values.get(a, {}).keys() & values.get(b, {}).keys() for a, b in pairs]
    complete = [len(folds) == len(planned) for folds in common]
    differences = [
        paired_difference(values[a], values[b]) if whole else None
        for (a, b), whole in zip(pairs, complete, strict=True)
    ]
    p_values = [None if d is None else d.p_value() for d in differences]
    adjusted = holm([1.0 if p is None else p for p in p_values])
    settled = [p < 1 - LEVEL for p in adjusted]
    level = 1 - (1 - LEVEL) / max(settled.count(False), 1)
    result = []
    for (a, b), folds, difference, p, q, clear in zip(
        pairs, common, differences, p_values, adjusted, settled, strict=True
    ):
        verdict: Verdict = "not settled"
        if difference is None:
            verdict = "gap"
        elif clear:
            verdict = "first" if difference.mean > 0 else "second"
            if number == "score" and difference.mean * paired_difference(exact[a], exact[b]).mean < 0:
                verdict = "measures disagree"
        result.append(
            Pair(
                number=number,
                first=a,
                second=b,
                difference=difference,
                p_value=None if p is None else q,
                detectable=None if difference is None else difference.detectable(level),
                verdict=verdict,
                folds=len(folds),
            )
        )
    return result


def _gaps(
    outcomes: Sequence[Outcome], methods: Sequence[str], planned: Sequence[Fold], floors: Mapping[Fold, float]
) -> list[str]:
    gaps = []
    for method in methods:
        scored = {o.fold for o in outcomes if o.model == method and "score" in o.numbers}
        missing = [_words(fold) for fold in planned if fold not in scored]
        if missing:
            gaps.append(f"{method}: no score on {', '.join(missing)}; it is compared with no method")
    unchecked = sorted({fold.seed for fold in planned} - {fold.seed for fold in floors})
    if unchecked:
        seeds = ", ".join(map(str, unchecked))
        gaps.append(f"no retrained model on a fold of seed {seeds}: the floor from base is not checked there")
    return gaps


def _words(fold: Fold) -> str:
    return f"seed {fold.seed}, fold {fold.fold}"
