"""The score with its four parts, and beside it privacy, forget quality and fluency: one row per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from efface.errors import EvaluationError
from efface.evaluation.goals import GOALS, Score, unlearning_score
from efface.evaluation.summary import forget_quality_of, modality_gap, privacy_of, rate

ATTACK = "mia_min_k_pp"
KEPT_SETS = ("retain", "real", "utility")
FORGOTTEN_SETS = ("forget", "test")


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


@dataclass(frozen=True)
class Scorecard:
    """All models, and why a goal has no scores."""

    lines: list[Line]
    refused: Mapping[str, str] = field(default_factory=dict)


def scorecard(tables: Mapping[str, pd.DataFrame], *, seed: int = 0) -> Scorecard:
    """The whole-model numbers of a comparison.

    Args:
        tables: score table per model, ``vanilla`` and ``retrained`` among them, all on the same samples.
        seed: seed of the bootstrap over people.
    """
    refused: dict[str, str] = {}
    lines = []
    for model, table in tables.items():
        scores: dict[str, Score] = {}
        for goal in GOALS:
            try:
                scores[goal] = unlearning_score(
                    table, vanilla=tables["vanilla"], retrained=tables["retrained"], goal=goal, seed=seed
                )
            except EvaluationError as error:
                refused[goal] = str(error)
        lines.append(_line(model, table, tables["retrained"], scores))
    return Scorecard(lines, refused)


def plain_scorecard(card: Scorecard) -> dict[str, Any]:
    """The numbers as nested plain values, None where one is not available; ``refused`` says why."""
    lines = {
        line.model: {key: value for key, value in asdict(line).items() if key not in ("model", "scores")}
        | {"score": {goal: score.as_dict() for goal, score in line.scores.items()}}
        for line in card.lines
    }
    return {"models": lines, "refused": dict(card.refused)}


def markdown_scorecard(card: Scorecard) -> str:
    """The scores as a Markdown table for a pull request."""
    head = ["model"]
    for goal in GOALS:
        head += [f"{goal} score", "95%", "forget / text / retain / utility"]
    head += ["AUC gap", "fluency"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in card.lines:
        cells = [line.model]
        for goal in GOALS:
            score = line.scores.get(goal)
            cells += ["n/a"] * 3 if score is None else _score_cells(score)
        cells += [_number(line.auc_gap), _number(line.fluency)]
        lines.append("| " + " | ".join(cells) + " |")
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
