"""The score with its four parts, and beside it privacy, forget quality and fluency: one row per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from efface.errors import EvaluationError
from efface.evaluation.goals import GOALS, Goal, Means, Score, score_difference, unlearning_score
from efface.evaluation.summary import forget_quality_of, modality_gap, privacy_of, rate
from efface.report.robustness import Robustness
from efface.report.scores import YARDSTICKS

ATTACK = "mia_min_k_pp"
KEPT_SETS = ("retain", "real", "utility")
FORGOTTEN_SETS = ("forget", "unseen")


@dataclass(frozen=True)
class Line:
    """One model; None where a number is not available.

    Attributes:
        model: its name.
        scores: goal to score, no entry where it was refused.
        auc: AUC of membership inference, forget people against people never seen.
        auc_gap: its distance from the retrained model's.
        privacy_leak: the same, relative and signed.
        forget_quality: decimal logarithm of the p-value that its truth ratios are the retrained model's.
        modality_gap: distance between facts known by picture and by name, on the people to forget.
        fluency: share of its answers that are answers, on everybody.
        refusals: share of refusals on the people to forget.
        attack_gap: how much more than the retrained model it answers after the attack that brings back most.
    """

    model: str
    scores: Mapping[str, Score]
    auc: float | None
    auc_gap: float | None
    privacy_leak: float | None
    forget_quality: float | None
    modality_gap: float | None
    fluency: float | None
    refusals: float | None
    attack_gap: float | None = None


@dataclass(frozen=True)
class Leader:
    """The method with the highest score under a goal.

    Attributes:
        model: its name.
        score: its score, above 0.
        close: methods not clearly behind it: the paired interval of the difference includes 0.
    """

    model: str
    score: Score
    close: Sequence[str]


@dataclass(frozen=True)
class Scorecard:
    """All models, why a goal has no scores, and which method leads under the others."""

    lines: list[Line]
    refused: Mapping[str, str] = field(default_factory=dict)
    leaders: Mapping[str, Leader] = field(default_factory=dict)


def scorecard(
    tables: Mapping[str, pd.DataFrame], *, seed: int = 0, attacks: Robustness | None = None
) -> Scorecard:
    """The whole-model numbers of a comparison.

    Args:
        tables: score table per model, ``vanilla`` and ``retrained`` among them, all on the same samples.
        seed: seed of the bootstrap over people.
        attacks: what attacks brought back, None where none was run.
    """
    refused: dict[str, str] = {}
    lines = []
    means = Means()
    for model, table in tables.items():
        scores: dict[str, Score] = {}
        for goal in GOALS:
            try:
                scores[goal] = unlearning_score(
                    table,
                    vanilla=tables["vanilla"],
                    retrained=tables["retrained"],
                    goal=goal,
                    seed=seed,
                    means=means,
                )
            except EvaluationError as error:
                refused[goal] = str(error)
        line = _line(model, table, tables["retrained"], scores)
        lines.append(replace(line, attack_gap=attacks.gap_of(model) if attacks else None))
    leaders: dict[str, Leader] = {
        goal: found for goal in GOALS if (found := _leader(tables, lines, goal, seed, means)) is not None
    }
    return Scorecard(lines, refused, leaders)


def _leader(
    tables: Mapping[str, pd.DataFrame], lines: Sequence[Line], goal: Goal, seed: int, means: Means
) -> Leader | None:
    """The best of the methods, None where none scores above 0."""
    scores = {
        line.model: line.scores[goal]
        for line in lines
        if line.model not in YARDSTICKS and goal in line.scores and line.scores[goal].value > 0
    }
    if not scores:
        return None
    best = max(scores, key=lambda model: scores[model].value)
    close = []
    for other in scores:
        if other == best:
            continue
        _, interval = score_difference(
            tables[best],
            tables[other],
            vanilla=tables["vanilla"],
            retrained=tables["retrained"],
            goal=goal,
            seed=seed,
            means=means,
        )
        if interval is None or interval[0] <= 0:
            close.append(other)
    return Leader(best, scores[best], close)


def plain_scorecard(card: Scorecard) -> dict[str, Any]:
    """The numbers as nested plain values, None where one is not available; ``refused`` says why."""
    lines = {
        line.model: {key: value for key, value in asdict(line).items() if key not in ("model", "scores")}
        | {"score": {goal: score.as_dict() for goal, score in line.scores.items()}}
        for line in card.lines
    }
    leaders = {
        goal: {"model": found.model, "close": list(found.close)} for goal, found in card.leaders.items()
    }
    return {"models": lines, "refused": dict(card.refused), "leaders": leaders}


def leading_sentences(card: Scorecard) -> list[str]:
    """Which method leads under each goal, no stronger than the paired intervals allow."""
    found = []
    for goal, leader in card.leaders.items():
        close = (
            f"not clearly behind it: {', '.join(leader.close)}"
            if leader.close
            else "the others are behind it by more than drawing other people would explain"
        )
        found.append(
            f"Under the goal {goal}, {leader.model} scores highest of the methods, {leader.score.value:.1f}; "
            f"{close}."
        )
    return found


def markdown_scorecard(card: Scorecard) -> str:
    """The scores as a Markdown table for a pull request."""
    head = ["model"]
    for goal in GOALS:
        head += [f"{goal} score", "95%", "forget / text / retain / utility"]
    head += ["AUC gap", "attack gap", "fluency"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in card.lines:
        cells = [line.model]
        for goal in GOALS:
            score = line.scores.get(goal)
            cells += ["n/a"] * 3 if score is None else _score_cells(score)
        cells += [_number(line.auc_gap), _number(line.attack_gap), _number(line.fluency)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{sentence}" for sentence in leading_sentences(card)]
    lines += [f"\n> No {goal} score: {reason}" for goal, reason in card.refused.items()]
    return "\n".join(lines) + "\n"


def _line(model: str, table: pd.DataFrame, retrained: pd.DataFrame, scores: Mapping[str, Score]) -> Line:
    attack = privacy_of(table, retrained).get(ATTACK)
    quality = None if _lacks(table) else forget_quality_of(table, retrained)
    gap = modality_gap(table)
    return Line(
        model=model,
        scores=scores,
        auc=attack.auc if attack else None,
        auc_gap=attack.gap if attack else None,
        privacy_leak=attack.leak if attack else None,
        forget_quality=quality.log10 if quality else None,
        modality_gap=gap.gap if gap else None,
        fluency=rate(table, "fluency", sets=(*FORGOTTEN_SETS, *KEPT_SETS)),
        refusals=rate(table, "refusal_rate", sets=FORGOTTEN_SETS),
    )


def _lacks(table: pd.DataFrame) -> bool:
    return not {"nll_paraphrase", "nll_wrong"} <= set(table.columns)


def _score_cells(score: Score) -> list[str]:
    interval = "" if score.low is None else f"{score.low:.0f} to {score.high:.0f}"
    parts = " / ".join(_number(x) for x in (score.forget, score.text, score.retain, score.utility))
    return [f"**{score.value:.1f}**", interval, parts]


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
