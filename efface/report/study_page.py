"""The page of a study: what it settles, paired comparisons, means over folds, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efface.evaluation import LEVEL, REFERENCE_MODELS
from efface.evaluation.intervals import FoldMean
from efface.evaluation.studies import (
    COLUMNS,
    COSTS,
    CURVES,
    EXACT_SCORE,
    FLOOR_HOLDS,
    MASKS,
    SCORES,
    MethodLine,
    Pair,
    StudyComparison,
)
from efface.report.estimates import Cell, Estimates
from efface.report.figures import Plot, front_plot, tradeoff_plots
from efface.report.rendering import markdown_table, number, render_page

DIGITS = {"score": 1, EXACT_SCORE: 1, COSTS[1]: 0}
"""Digits after the decimal point, if not two."""
LARGEST = {"score": 100.0, EXACT_SCORE: 100.0, **dict.fromkeys((*SCORES[1:], *COLUMNS), 1.0)}
"""The largest value of numbers that lie between 0 and a bound; intervals and differences end there."""
GAPS = "exact match after an attack, above retrained after the same"


@dataclass(frozen=True)
class StudyPage:
    """Everything the page shows.

    Attributes:
        comparison: result of `efface.evaluation.studies.compare_study`.
        settings: method to its settings in words, in the order of their numbers.
        unfinished: cell to why it did not finish.
        provenance: label to value.
    """

    comparison: StudyComparison
    settings: Mapping[str, Sequence[str]]
    unfinished: Mapping[str, str]
    provenance: Mapping[str, str]


def render_study(page: StudyPage) -> str:
    """The page as one HTML document."""
    comparison = page.comparison
    return render_page(
        "study.html.j2",
        page=page,
        comparison=comparison,
        seeds=sorted({fold.seed for fold in comparison.folds}),
        conclusions=study_conclusions(comparison),
        controls=control_rows(comparison),
        pairs=pair_rows(comparison),
        tables=mean_tables(comparison),
        settings=setting_rows(page),
        plots=_plots(comparison),
        level=f"{LEVEL:.0%}",
    )


def study_summary(page: StudyPage) -> str:
    """The conclusions and the tables as Markdown."""
    comparison = page.comparison
    lines = [f"### Study: {_scale(comparison)}", "", *(f"{line}\n" for line in study_conclusions(comparison))]
    lines += [f"> **Unfinished** {cell}: {reason}\n" for cell, reason in page.unfinished.items()]
    lines += [f"> **Gap** {gap}\n" for gap in comparison.gaps]
    tables = {"method and control": control_rows(comparison)}
    tables |= {f"pair, by {title}": rows for title, rows in pair_rows(comparison).items()}
    for title, rows in tables.items():
        if rows:
            lines += [*markdown_table([title, *PAIR_COLUMNS], rows), ""]
    for title, (columns, rows_of_means) in mean_tables(comparison).items():
        rows = [
            [model, *(f"{value} ({interval})" if interval else value for value, interval in cells)]
            for model, cells in rows_of_means
        ]
        lines += [*markdown_table([title, *columns], rows), ""]
    lines += [f"- {method}: {words}" for method, words in setting_rows(page)]
    lines.append(f"\nIn brackets {LEVEL:.0%} intervals, Student's t over the means of the seeds.")
    return "\n".join(lines) + "\n"


def plain_study(comparison: StudyComparison) -> dict[str, Any]:
    """The numbers as plain values, for JSON."""
    return {
        "goal": comparison.goal,
        "folds": [list(fold) for fold in comparison.folds],
        "lines": {
            line.model: {
                "folds": line.folds,
                "refused": list(line.refused),
                "numbers": {name: _plain(mean) for name, mean in line.numbers.items()},
            }
            for line in comparison.lines
        },
        "pairs": [asdict(pair) | {"difference": _plain(pair.difference)} for pair in comparison.pairs],
        "controls": dict(comparison.controls),
        "settings": {method: asdict(setting) for method, setting in comparison.settings.items()},
        "floors": [[*fold, value] for fold, value in comparison.floors.items()],
        "gaps": comparison.gaps,
        "outcomes": [asdict(outcome) for outcome in comparison.outcomes],
    }


def _plain(mean: FoldMean | None) -> dict[str, Any] | None:
    return None if mean is None else asdict(mean) | {"interval": mean.interval()}


def _scale(comparison: StudyComparison) -> str:
    seeds = len({fold.seed for fold in comparison.folds})
    return f"{len(comparison.folds)} folds on {seeds} seed{'s' if seeds > 1 else ''}, goal {comparison.goal}"


def study_conclusions(comparison: StudyComparison) -> list[str]:
    """Three sentences: what was compared on which floor, what is settled, and what stays open."""
    scores = [pair for pair in comparison.pairs if pair.number == "score"]
    methods = sum(line.model not in REFERENCE_MODELS for line in comparison.lines)
    floors = comparison.floors.values()
    if not floors:
        floor = "no retrained model checks the floor, which is the base model's"
    elif min(floors) >= FLOOR_HOLDS:
        floor = f"retrained models confirm the floor from base (they forget {min(floors):.2f} or more of 1)"
    else:
        floor = (
            f"the floor from base is wrong: a retrained model forgets {min(floors):.2f} of 1 where "
            f"{FLOOR_HOLDS} is expected, so all numbers of forgetting are off by that much"
        )
    compared = f"{methods} methods were compared in pairs on {_scale(comparison)}; {floor}."
    orders = [pair.seen_from(pair.second if pair.verdict == "second" else pair.first) for pair in scores]
    settled = [f"{p.first} before {p.second}" for p in orders if p.verdict == "first"]
    missing = sum(pair.verdict == "gap" for pair in scores)
    claim = "Settled by the score: " + ", ".join(settled) if settled else "The score settles no order"
    claim += f"; {missing} of {len(scores)} pairs lack folds and are not compared." if missing else "."
    for method in comparison.controls:
        control_pairs = [pair for pair in comparison.of_control(method) if pair.number == "score"]
        claim += "".join(
            f" {method} {VERDICTS[p.verdict]} {comparison.controls[method]}." for p in control_pairs
        )
    limits = [p.detectable for p in scores if p.verdict == "not settled" and p.detectable is not None]
    if limits:
        numbers = f"{min(limits):.1f}" + (f" to {max(limits):.1f}" if len(limits) > 1 else "")
        unseen = (
            f"Not settled: {len(limits)} of {len(scores)} pairs; true differences below {numbers} points "
            "would be missed more often than once in five."
        )
    elif any(pair.verdict == "not settled" for pair in scores):
        unseen = "One fold gives no uncertainty, so nothing can be settled: run more seeds and folds."
    else:
        unseen = "All compared pairs are settled."
    return [compared, claim, unseen]


VERDICTS = {
    "first": "beats its control",
    "second": "does not beat its control",
    "not settled": "is not settled against its control",
    "measures disagree": "is not settled (knowledge and exact match disagree) against its control",
    "gap": "is not compared with its control, for lack of folds",
}
PAIR_COLUMNS = ("difference", f"{LEVEL:.0%} interval", "p, adjusted", "verdict", "smallest detectable")


def control_rows(comparison: StudyComparison) -> list[list[str]]:
    """Each method against its control, by every number that is compared."""
    verdicts = {"first": "beats", "second": "does not beat"}
    return [
        [f"{method} against {control}, {pair.number}", *_pair_words(pair, verdicts, comparison)]
        for method, control in comparison.controls.items()
        for pair in comparison.of_control(method)
    ]


def pair_rows(comparison: StudyComparison) -> dict[str, list[list[str]]]:
    """Number to its rows, one per pair."""
    rows: dict[str, list[list[str]]] = {}
    for pair in comparison.pairs:
        verdicts = {"first": f"{pair.first} before", "second": f"{pair.second} before"}
        words = [f"{pair.first} – {pair.second}", *_pair_words(pair, verdicts, comparison)]
        rows.setdefault(pair.number, []).append(words)
    return rows


def _pair_words(pair: Pair, verdicts: Mapping[str, str], comparison: StudyComparison) -> list[str]:
    if pair.difference is None:
        return ["–", "–", "–", f"gap: {pair.folds} of {len(comparison.folds)} folds", "–"]
    digits, interval = DIGITS.get(pair.number, 3), pair.difference.interval()
    return [
        f"{pair.difference.mean:+.{digits}f}",
        "–" if interval is None else f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}",
        number(pair.p_value),
        verdicts.get(pair.verdict, pair.verdict),
        _detectable(pair, digits) if pair.verdict == "not settled" else "",
    ]


def _detectable(pair: Pair, digits: int) -> str:
    """The smallest detectable difference; none, if no difference that can be is large enough."""
    if pair.detectable is not None and pair.detectable > LARGEST.get(pair.number, math.inf):
        return "none"
    return number(pair.detectable, digits)


def mean_tables(
    comparison: StudyComparison,
) -> dict[str, tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]]:
    """Title to columns and rows: model, then value and interval of each column."""
    measured = list(dict.fromkeys(name for line in comparison.lines for name in line.numbers))
    titles = {
        f"score, goal {comparison.goal}": ["score", EXACT_SCORE, *SCORES[1:]],
        "exact match": list(COLUMNS),
        "forget-retain curve": list(CURVES),
        "mask": list(MASKS),
        GAPS: [name for name in measured if name.endswith(", gap")],
        "cost": list(COSTS),
    }
    tables = {}
    for title, columns in titles.items():
        columns = [column for column in columns if column in measured]
        rows = [
            (line.model, [*(_mean_words(line, column) for column in columns), (str(line.folds), "")])
            for line in comparison.lines
            if any(column in line.numbers for column in columns)
        ]
        if rows:
            tables[title] = [*columns, "folds"], rows
    return tables


def _mean_words(line: MethodLine, column: str) -> tuple[str, str]:
    """The mean and its interval; a dash without a mean, empty without an interval."""
    mean, digits = line.numbers.get(column), DIGITS.get(column, 2)
    if mean is None:
        return number(None), ""
    interval = _interval(mean, column)
    return number(mean.mean, digits), "" if interval is None else " to ".join(
        number(x, digits) for x in interval
    )


def _interval(mean: FoldMean, column: str) -> tuple[float, float] | None:
    """The interval of a mean, cut off where the number itself ends."""
    interval, largest = mean.interval(), LARGEST.get(column)
    if interval is None or largest is None:
        return interval
    return max(0.0, interval[0]), min(largest, interval[1])


def setting_rows(page: StudyPage) -> list[tuple[str, str]]:
    """Method to the chosen setting, out of how many, and its score."""
    rows = []
    for method, setting in page.comparison.settings.items():
        words = page.settings.get(method, [])
        name = words[setting.index] if setting.index < len(words) else f"setting {setting.index}"
        if setting.refused is not None:
            rows.append((method, f"{name}, not chosen by a score: {setting.refused}"))
        else:
            count = max(len(words), len(setting.scores))
            best = setting.scores[setting.index]
            rows.append((method, f"{name}, best of {count} with a score of {best:.1f} on the tuning folds"))
    return rows


def _plots(comparison: StudyComparison) -> list[Plot]:
    plots = tradeoff_plots({line.model: _estimates(line) for line in comparison.lines}, over="seeds")
    if comparison.fronts:
        curves = {method: list(of_fold.values()) for method, of_fold in comparison.fronts.items()}
        plots.append(front_plot(curves, models=[line.model for line in comparison.lines]))
    return plots


def _estimates(line: MethodLine) -> Estimates:
    estimates: Estimates = {}
    for column, (kind, modality) in COLUMNS.items():
        mean = line.numbers.get(column)
        if mean is not None:
            low, high = _interval(mean, column) or (None, None)
            cell = Cell(mean.mean, low, high, mean.folds, mean.folds)
            estimates.setdefault(kind, {}).setdefault(modality, {})["exact_match"] = cell
    return estimates
