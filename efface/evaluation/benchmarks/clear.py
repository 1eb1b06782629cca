"""CLEAR's metrics, and the three numbers that MMUnlearner computes from CLEAR.

| ``tasks[task]`` | question | answer | wrong answers |
|---|---|---|---|
| ``forget``, ``retain`` | for a caption | the caption | five false captions |
| ``..._face_recognition`` | for the name | the name | five names |
| ``real_faces``, ``real_world`` | for a name; any | the answer | three others |

| number | computed as | good |
|---|---|---|
| ``probability`` | captions: exp(-nll); else p / (p + sum of the wrong) | retain people up |
| ``truth_ratio`` | forget: min(R, 1/R), else max(0, 1 - 1/R) | retain people up |
| ``real_metric``, ``retain_metric`` | harmonic means of the two, over two tasks | up |
| ``forget_metric`` | the same of the forget people | near retrained's |
| ``model_utility`` | harmonic mean of all that is not about forget people, with ROUGE-L recall | up |
| forget quality | KS test of R against the retrained model's, on the same captions | p near 1 |

R = p(paraphrase) / geometric mean of p(wrong). ``mmunlearner`` holds ``vqa`` (the name among six options),
``vgen`` (captions) and ``qa`` (questions in text). The two papers disagree about text questions on the forget
people: MMUnlearner wants them kept (up), CLEAR with TOFU wants them forgotten (down).

``official_compat`` follows the released code in two departures from its definition: a truth ratio against one
mean over the wrong answers of all rows, and a Jensen-Shannon distance that treats the rows as a distribution
and so depends on their order.

Reference:
    Dontsov et al., "CLEAR", arXiv:2410.18057; Huo et al., "MMUnlearner", arXiv:2502.11051.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efface.evaluation import likelihood, texts
from efface.evaluation.benchmarks.reading import CHOICE, SENTENCE, Cell, Row, rows_of, summed_up
from efface.evaluation.comparisons import forget_quality as kolmogorov_smirnov
from efface.evaluation.comparisons import js_distance
from efface.evaluation.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

TASKS = {
    "real_faces": ("real", "name"),
    "real_world": ("utility", "qa"),
    "retain": ("retain", "caption"),
    "retain_face_recognition": ("retain", "name"),
    "forget": ("forget", "caption"),
    "forget_face_recognition": ("forget", "name"),
}
"""CLEAR's tasks to set and task of the samples."""

MEANS = {
    "real_metric": ("real_faces", "real_world"),
    "retain_metric": ("retain", "retain_face_recognition"),
    "forget_metric": ("forget", "forget_face_recognition"),
}
"""Harmonic means of probability and truth ratio of two tasks each; the first two should rise, the last fall,
but not below the retrained model's."""

DIRECTIONS = {
    "vqa": {"forget": "down", "retain": "up", "real": "up", "utility": "up"},
    "vgen": {"forget": "down", "retain": "up"},
    "qa": {"forget": "up in MMUnlearner, down in CLEAR+TOFU", "retain": "up"},
}
"""The direction in which a good method moves MMUnlearner's numbers."""

_BINS = 20


def view(scores: pd.DataFrame, *, official_compat: bool = False) -> dict[str, Any]:
    """Both papers' numbers for one model; forget quality takes two, see :func:`forget_quality`.

    Args:
        scores: rows of the model's score table that count (part ``test``).
        official_compat: truth ratios as the released code computes them.

    Returns:
        ``tasks[task]`` with ``probability``, ``truth_ratio`` and ``rouge_l_recall``, ``metrics``, and
        ``mmunlearner[vqa|vgen|qa][set]``, each number as ``value`` in [0, 1] and ``n`` rows; numbers without
        rows are left out.
    """
    rows = rows_of(scores)
    tasks = {}
    for name, (set_name, task) in TASKS.items():
        cell_rows = [row for row in rows if (row["set"], row["task"]) == (set_name, task)]
        if cells := _task(cell_rows, forget=set_name == "forget", compat=official_compat):
            tasks[name] = cells
    return {
        "benchmark": "clear",
        "official_compat": official_compat,
        "tasks": tasks,
        "metrics": _metrics(tasks),
        "mmunlearner": _mmunlearner(rows),
        "directions": DIRECTIONS,
    }


def forget_quality(
    scores: pd.DataFrame, retrained: pd.DataFrame, *, official_compat: bool = False
) -> dict[str, float | int]:
    """How similar the truth ratios of the captions to forget are under a model and the retrained one.

    Args:
        scores: rows of the model's score table that count (part ``test``).
        retrained: the same of the retrained model.
        official_compat: truth ratios and Jensen-Shannon distance as the released code computes them.

    Returns:
        ``ks_p`` in [0, 1], its decimal logarithm ``log10_ks_p``, ``ks_statistic``, ``js_quality`` (1 minus
        the distance, in [0.167, 1]), and ``n`` rows. High is good.

    Raises:
        ValueError: if the two were not scored on the same captions.
    """
    of_model, of_retrained = (_caption_ratios(table, official_compat) for table in (scores, retrained))
    if set(of_model) != set(of_retrained) or not of_model:
        raise ValueError(
            f"forget quality needs the same captions from both models, got {len(of_model)} and "
            f"{len(of_retrained)} of which {len(set(of_model) & set(of_retrained))} are shared; "
            "score both on one prepared table"
        )
    first, second = list(of_model.values()), [of_retrained[key] for key in of_model]
    test = kolmogorov_smirnov(first, second)
    distance = js_distance(first, second, bins=None if official_compat else _BINS)
    return {
        "ks_p": test.p_value,
        "log10_ks_p": test.log10,
        "ks_statistic": test.statistic,
        "js_quality": 1 - distance,
        "n": test.n,
    }


def truth_ratios(rows: Sequence[Row], *, official_compat: bool = False) -> list[float]:
    """Truth ratio R of each row, in (0, inf): the probability of the paraphrase over the wrong answers'
    geometric mean.

    Args:
        rows: rows with ``nll_paraphrase`` and ``nll_wrong``.
        official_compat: use the mean over the wrong answers of all rows instead of the row's own.
    """
    if not official_compat:
        return [likelihood.truth_ratio(row["nll_paraphrase"], row["nll_wrong"]) for row in rows]
    everything = [value for row in rows for value in row["nll_wrong"]]
    return [likelihood.truth_ratio(row["nll_paraphrase"], everything) for row in rows]


def _task(rows: Sequence[Row], *, forget: bool, compat: bool) -> dict[str, Cell]:
    caption = bool(rows) and rows[0]["task"] == "caption"
    readings = {
        "probability": METRICS["probability" if caption else "probability_among"].value_of,
        "rouge_l_recall": lambda row: texts.rouge(row["generation"], row["gold"])["rougeL"].recall,
    }
    cells = summed_up(rows, readings)
    if ratios := truth_ratios(_with_ratio(rows), official_compat=compat):
        scores = [min(r, 1 / r) if forget else max(0.0, 1 - 1 / r) for r in ratios]
        cells["truth_ratio"] = {"value": math.fsum(sorted(scores)) / len(scores), "n": len(scores)}
    return cells


def _with_ratio(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("nll_paraphrase") is not None and row.get("nll_wrong")]


def _metrics(tasks: dict[str, dict[str, Cell]]) -> dict[str, Cell]:
    """The harmonic means; one with a missing task is left out."""
    result: dict[str, Cell] = {}
    other_tasks = [name for name, (set_name, _) in TASKS.items() if set_name != "forget"]
    means = {
        name: [(t, m) for t in pair for m in ("probability", "truth_ratio")] for name, pair in MEANS.items()
    }
    means["model_utility"] = [
        (t, m) for t in other_tasks for m in ("rouge_l_recall", "probability", "truth_ratio")
    ]
    for name, cells in means.items():
        if all(metric in tasks.get(task, {}) for task, metric in cells):
            values = [float(tasks[task][metric]["value"]) for task, metric in cells]
            rows = {task: int(tasks[task]["truth_ratio"]["n"]) for task, _ in cells}
            result[name] = {"value": statistics.harmonic_mean(values), "n": sum(rows.values())}
    return result


def _mmunlearner(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Cell]]]:
    result: dict[str, dict[str, dict[str, Cell]]] = {}
    for name, task, modality, readings in (
        ("vqa", "choice", "multimodal", CHOICE),
        ("vgen", "caption", "multimodal", SENTENCE),
        ("qa", "generation", "text", SENTENCE),
    ):
        for set_name in DIRECTIONS[name]:
            cell_rows = [
                r for r in rows if (r["set"], r["task"], r["modality"]) == (set_name, task, modality)
            ]
            if cells := summed_up(cell_rows, readings):
                result.setdefault(name, {})[set_name] = cells
    return result


def _caption_ratios(scores: pd.DataFrame, compat: bool) -> dict[str, float]:
    captions = rows_of(scores[(scores["set"] == "forget") & (scores["task"] == "caption")])
    rows = sorted(_with_ratio(captions), key=lambda row: str(row["sample_id"]))
    ratios = truth_ratios(rows, official_compat=compat) if rows else []
    return {row["sample_id"]: ratio for row, ratio in zip(rows, ratios, strict=True)}
