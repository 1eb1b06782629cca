"""A comparison of models: scores with their parts, privacy, and what may be concluded.

One run over few people ranks nothing. With enough people two methods are ordered only if the paired interval
over people, Holm-adjusted over all pairs, excludes 0 and exact match gives the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd

from efface.errors import EvaluationError
from efface.evaluation import LEARNT, LEVEL, MANY_PEOPLE, REFERENCE_MODELS
from efface.evaluation.comparisons import RelativeDistance
from efface.evaluation.goals import GOALS, MEASURES, Goal, Measure, Score, score_difference, unlearning_score
from efface.evaluation.intervals import holm
from efface.evaluation.metrics import FORGET_SETS, with_metrics
from efface.evaluation.summary import (
    REFERENCE_ATTACK,
    forget_quality_of,
    modality_gap,
    privacy_of,
    rate,
    relative_distance_of,
)
from efface.report.attacks import Attacks
from efface.report.estimates import Estimates, value_of
from efface.report.rendering import markdown_table

ALL_SETS = (*FORGET_SETS, "retain", "real", "utility")


@dataclass(frozen=True)
class Line:
    """One model; numbers that are not available are None.

    Attributes:
        model: its name.
        scores: goal to score by ``knowledge``; no entry if the score was refused.
        exact: goal to score by exact match.
        auc: AUC of membership inference, forget people against people whom no model was trained on.
        auc_interval: its interval over people.
        auc_gap: its distance from the retrained model's.
        tpr: true-positive rate of the same attack at a false-positive rate of 1 %.
        privacy_leak: distance of the AUCs, relative and signed.
        forget_quality: decimal logarithm of the p value of equal truth ratios with the retrained model.
        nearer: whether its answers are nearer to retrained or to vanilla.
        modality_gap: distance between the shares of facts right by picture and by name, on the people to
        forget. fluency: share of generations that are answers, on all sets.
        refusals: share of refusals on the people to forget.
        attack_gap: how much more it answers than the retrained model after the worst attack.
        attack_interval: its interval over people.
    """

    model: str
    scores: Mapping[str, Score]
    exact: Mapping[str, Score]
    auc: float | None
    auc_interval: tuple[float, float] | None
    auc_gap: float | None
    tpr: float | None
    privacy_leak: float | None
    forget_quality: float | None
    nearer: RelativeDistance | None
    modality_gap: float | None
    fluency: float | None
    refusals: float | None
    attack_gap: float | None = None
    attack_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """All models of a report.

    Attributes:
        lines: one per model.
        refused: goal to why it has no scores.
        disagreements: goal to pairs of methods that the two measures order differently.
        orders: goal to pairs (better, worse) that may be ordered; always empty for few people.
        people: number of people to forget behind the scores.
    """

    lines: list[Line]
    refused: Mapping[str, str] = field(default_factory=dict)
    disagreements: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    orders: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    people: int = 0


def compare(
    tables: Mapping[str, pd.DataFrame], *, seed: int = 0, attacks: Attacks | None = None
) -> Comparison:
    """Score every model and order those that may be ordered.

    Args:
        tables: score table per model, including the reference models, all on the same samples.
        seed: seed of the permutation test.
        attacks: results of attacks; None if none was run.
    """
    tables = {model: with_metrics(table, list(MEASURES)) for model, table in tables.items()}
    refused: dict[str, str] = {}

    def scores_of(table: pd.DataFrame, measure: Measure) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        for goal in GOALS:
            try:
                scores[goal] = unlearning_score(
                    table,
                    base=tables["base"],
                    vanilla=tables["vanilla"],
                    retrained=tables["retrained"],
                    goal=goal,
                    measure=measure,
                )
            except EvaluationError as error:
                if measure == MEASURES[0]:
                    refused[goal] = str(error)
        return scores

    lines = []
    for model, table in tables.items():
        privacy = privacy_of(table, tables["retrained"], attacks=[REFERENCE_ATTACK]).get(REFERENCE_ATTACK)
        has_ratios = {"nll_paraphrase", "nll_wrong"} <= set(table.columns)
        quality = forget_quality_of(table, tables["retrained"]) if has_ratios else None
        worst = attacks.worst.get(model) if attacks else None
        lines.append(
            Line(
                model=model,
                scores=scores_of(table, "knowledge"),
                exact=scores_of(table, "exact_match"),
                auc=privacy.model.auc if privacy else None,
                auc_interval=privacy.model.interval if privacy else None,
                auc_gap=privacy.gap if privacy else None,
                tpr=privacy.model.tpr if privacy else None,
                privacy_leak=privacy.leak if privacy else None,
                forget_quality=quality.log10 if quality else None,
                nearer=None
                if model in ("vanilla", "retrained")
                else relative_distance_of(table, tables["vanilla"], tables["retrained"], seed=seed),
                modality_gap=modality_gap(table),
                fluency=rate(table, "fluency", sets=ALL_SETS),
                refusals=rate(table, "refusal_rate", sets=FORGET_SETS),
                attack_gap=worst.gap if worst else None,
                attack_interval=worst.interval if worst else None,
            )
        )
    forget = tables["vanilla"][(tables["vanilla"]["part"] == "test") & (tables["vanilla"]["set"] == "forget")]
    people = int(forget["entity_id"].nunique())
    many = people >= MANY_PEOPLE
    disagreements: dict[str, list[tuple[str, str]]] = {goal: _disagreements(lines, goal) for goal in GOALS}
    orders: dict[str, list[tuple[str, str]]] = {
        goal: _orders(tables, lines, goal) if many else [] for goal in GOALS
    }
    return Comparison(lines, refused, disagreements, orders, people)


def _methods(lines: Sequence[Line], goal: str) -> list[Line]:
    return [line for line in lines if line.model not in REFERENCE_MODELS and goal in line.scores]


def _disagreements(lines: Sequence[Line], goal: str) -> list[tuple[str, str]]:
    """Pairs of methods that knowledge and exact match order differently."""
    return [
        (first.model, second.model)
        for first, second in combinations(_methods(lines, goal), 2)
        if goal in first.exact
        and goal in second.exact
        and (first.scores[goal].value - second.scores[goal].value)
        * (first.exact[goal].value - second.exact[goal].value)
        < 0
    ]


def _orders(tables: Mapping[str, pd.DataFrame], lines: Sequence[Line], goal: Goal) -> list[tuple[str, str]]:
    """Pairs (better, worse) with a difference clear of 0 after Holm's adjustment by both measures."""
    pairs = list(combinations([line.model for line in _methods(lines, goal) if goal in line.exact], 2))
    signs: list[list[int]] = []
    for measure in MEASURES:
        results = [
            score_difference(
                tables[a],
                tables[b],
                base=tables["base"],
                vanilla=tables["vanilla"],
                retrained=tables["retrained"],
                goal=goal,
                measure=measure,
            )
            for a, b in pairs
        ]
        p_values = holm([1.0 if estimate is None else estimate.p_value() for _, estimate in results])
        clear = [p < 1 - LEVEL for p in p_values]
        signs.append(
            [
                (difference > 0) - (difference < 0) if ok else 0
                for (difference, _), ok in zip(results, clear, strict=True)
            ]
        )
    return [
        pair if first > 0 else (pair[1], pair[0])
        for pair, first, second in zip(pairs, *signs, strict=True)
        if first and first == second
    ]


def plain_comparison(comparison: Comparison) -> dict[str, Any]:
    """The numbers as nested plain values; None for those not available."""
    return {
        "models": {
            line.model: {k: v for k, v in asdict(line).items() if k not in ("model", "scores", "exact")}
            | {"score": {goal: asdict(score) for goal, score in line.scores.items()}}
            | {"score_exact_match": {goal: asdict(score) for goal, score in line.exact.items()}}
            for line in comparison.lines
        },
        "refused": dict(comparison.refused),
        "disagreements": {goal: [list(p) for p in pairs] for goal, pairs in comparison.disagreements.items()},
        "orders": {goal: [list(p) for p in pairs] for goal, pairs in comparison.orders.items()},
    }


def conclusions(comparison: Comparison, estimates: Mapping[str, Estimates]) -> list[str]:
    """Three sentences: what was measured, what may be concluded, what is open and would settle more."""
    shares = {
        m: value_of(estimates[m], "forget", "multimodal", "knowledge") for m in ("vanilla", "retrained")
    }
    levels = {model: "not measured" if share is None else f"{share:.2f}" for model, share in shares.items()}
    measured = (
        "Asked by picture about the people to forget, vanilla gives the right answer a probability of "
        f"{levels['vanilla']} per token, and a model that never met them (retrained) "
        f"{levels['retrained']}; a method forgets if it comes close to the second on these people and stays "
        "close to vanilla on the rest."
    )
    attacked = [
        line.attack_gap
        for line in comparison.lines
        if line.model not in REFERENCE_MODELS and line.attack_gap is not None
    ]
    if attacked:
        methods, gaps = f"{len(attacked)} methods answer", f"{min(attacked):+.2f} to {max(attacked):+.2f}"
        if len(attacked) == 1:
            methods, gaps = "one method answers", f"{attacked[0]:+.2f}"
        hidden = (
            f"After the worst attack on each, {methods} {gaps} more than retrained after the same attack; "
        )
    else:
        hidden = "No method was attacked, so whether facts are gone or hidden is open (attack.models); "
    return [
        measured,
        _claim(comparison),
        hidden + "to order methods, run a study (python -m flows.study): several forget sets and seeds, "
        "paired, with settings chosen on people that appear in no reported number.",
    ]


def _claim(comparison: Comparison) -> str:
    """What this run shows about its methods, and which orders follow from it, if any."""
    if len(comparison.refused) == len(GOALS):
        return "No method is scored: " + next(iter(comparison.refused.values()))
    goal = next(goal for goal in GOALS if goal not in comparison.refused)
    scores = [line.scores[goal] for line in _methods(comparison.lines, goal)]
    ranges = ""
    if scores:
        forget, retain = ([getattr(score, part) for score in scores] for part in ("forget", "retain"))
        ranges = (
            f"Here {len(scores)} methods go, by picture, {min(forget):.2f} to {max(forget):.2f} of the "
            f"way from vanilla to retrained on these people and retain {min(retain):.2f} to "
            f"{max(retain):.2f} of what vanilla knows about the others, each in its worst set; "
        )
    goals = [goal for goal in GOALS if comparison.orders.get(goal)]
    if comparison.people < MANY_PEOPLE:
        return ranges + (
            f"this is one run with {comparison.people} people to forget, so it orders no methods: intervals "
            "over so few people are wide, and they leave out the noise of training."
        )
    if not goals:
        return ranges + (
            "it orders no methods: no difference is clear of 0 by both knowledge and exact match after "
            "adjusting for the number of pairs."
        )
    pairs = "; ".join(
        f"goal {goal}: " + ", ".join(f"{a} before {b}" for a, b in comparison.orders[goal]) for goal in goals
    )
    return ranges + (
        f"on other people too, though for this training run only, one may expect {pairs} (both measures, "
        "adjusted for the number of pairs)."
    )


def warnings(estimates: Mapping[str, Estimates]) -> list[str]:
    """One line for each set and modality that vanilla never learnt: it does not lead base, or retrained."""
    lines = []
    for name in (*FORGET_SETS, "retain"):
        for modality in ("multimodal", "text"):
            vanilla = value_of(estimates["vanilla"], name, modality, "knowledge")
            floors = {
                model: value_of(estimates[model], name, modality, "knowledge")
                for model in (("retrained", "base") if name in FORGET_SETS else ("base",))
            }
            highest = max(floors, key=lambda model: floors[model] or 0.0)
            floor = floors[highest]
            if vanilla is not None and floor is not None and vanilla - floor < LEARNT:
                so = "kept" if name == "retain" else "removed"
                lines.append(
                    f"{name} / {modality}: vanilla has {vanilla:.3f} by knowledge, {highest} {floor:.3f}. "
                    f"Vanilla did not learn this, so no method can have {so} it."
                )
    return lines


@dataclass(frozen=True)
class Target:
    """A condition that shows that a run worked.

    Attributes:
        meaning: in plain words.
        value: exact match; None if nothing was scored.
        bound: the bound on the value.
        at_least: whether it is a lower bound; otherwise an upper one.
    """

    meaning: str
    value: float | None
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the bound."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def targets(estimates: Mapping[str, Estimates], bounds: Mapping[str, float]) -> list[Target]:
    """The conditions on the reference models.

    Args:
        estimates: model -> set -> modality -> measure.
        bounds: ``vanilla_forget``, ``vanilla_unseen``, ``vanilla_text``, ``retrained_forget`` and
            ``skills_kept``, each in [0, 1].
    """

    def exact(model: str, name: str, modality: str) -> float | None:
        return value_of(estimates[model], name, modality, "exact_match")

    of_retrained = [exact("retrained", "forget", modality) for modality in ("multimodal", "text")]
    skills, before = (exact(model, "utility", "multimodal") for model in ("vanilla", "base"))
    return [
        Target(
            "vanilla knows the people to forget in training pictures",
            exact("vanilla", "forget", "multimodal"),
            bounds["vanilla_forget"],
        ),
        Target(
            "vanilla knows them in new pictures",
            exact("vanilla", "unseen", "multimodal"),
            bounds["vanilla_unseen"],
        ),
        Target("vanilla knows them by name", exact("vanilla", "forget", "text"), bounds["vanilla_text"]),
        Target(
            "retrained, which never met them, does not know them",
            None if None in of_retrained else max(value for value in of_retrained if value is not None),
            bounds["retrained_forget"],
            at_least=False,
        ),
        Target(
            "vanilla keeps this share of the base model's skills",
            skills / before if skills is not None and before else None,
            bounds["skills_kept"],
        ),
    ]


def markdown_scores(comparison: Comparison) -> str:
    """The scores as a Markdown table for a pull request."""
    head = ["model"]
    for goal in GOALS:
        head += [f"{goal} score", "95%", "forget / text / retain / utility", "by exact match"]
    head += ["AUC gap", "attack gap", "fluency"]
    rows = []
    for line in comparison.lines:
        cells = [line.model]
        for goal in GOALS:
            score, exact = line.scores.get(goal), line.exact.get(goal)
            if score is None:
                cells += ["n/a"] * 3
            else:
                interval = "" if score.low is None else f"{score.low:.0f} to {score.high:.0f}"
                parts = (score.forget, score.text, score.retain, score.utility)
                cells += [f"**{score.value:.1f}**", interval, " / ".join(f"{part:.2f}" for part in parts)]
            cells.append("n/a" if exact is None else f"{exact.value:.1f}")
        for value in (line.auc_gap, line.attack_gap, line.fluency):
            cells.append("n/a" if value is None else f"{value:.2f}")
        rows.append(cells)
    lines = markdown_table(head, rows, align="---")
    lines += [f"\n> No {goal} score: {reason}" for goal, reason in comparison.refused.items()]
    for name, pairs in comparison.disagreements.items():
        if pairs:
            lines.append(
                f"\n> Goal {name}: knowledge and exact match order these differently, so no order is "
                f"claimed: {', '.join(f'{a} and {b}' for a, b in pairs)}."
            )
    return "\n".join(lines) + "\n"
