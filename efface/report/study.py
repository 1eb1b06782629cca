"""The page of a study: tables of means over seeds, trade-off plots, and the cells that did not finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from efface.evaluation.studies import COLUMNS, COSTS, SCORES, Line
from efface.report.estimates import Cell, Estimates
from efface.report.figures import Plot, tradeoff_plots
from efface.report.report_page import number, svg_uri

_DIGITS = {"score": 1, COSTS[1]: 0}
"""Digits after the point, where not two."""


GAPS = "exact match after an attack, above retrained after the same"


@dataclass(frozen=True)
class StudyPage:
    """Everything the page shows.

    Attributes:
        lines: the table.
        goal: what the score asks for.
        unfinished: cell to why it did not finish.
        provenance: label to value.
    """

    lines: Sequence[Line]
    goal: str
    unfinished: Mapping[str, str]
    provenance: Mapping[str, str]

    @property
    def fractions(self) -> list[float]:
        """The shares of people to forget, in the order of the lines."""
        return list(dict.fromkeys(line.fraction for line in self.lines))

    def of(self, fraction: float) -> list[Line]:
        """The lines of one fraction."""
        return [line for line in self.lines if line.fraction == fraction]


def render_study(page: StudyPage) -> str:
    """One HTML document, pictures and style inside, no script."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = svg_uri
    environment.filters["words"] = _words
    template = environment.from_string(
        files("efface.report").joinpath("study.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        page=page,
        plots={fraction: plots_of(page.of(fraction)) for fraction in page.fractions},
        style=Markup(files("efface.report").joinpath("report.css").read_text(encoding="utf-8")),
        tables=tables(page),
    )


def tables(page: StudyPage) -> dict[str, list[str]]:
    """Title of each table to its columns."""
    columns = {"exact match": list(COLUMNS), f"score, goal {page.goal}": list(SCORES), "cost": list(COSTS)}
    attacks = list(dict.fromkeys(attack for line in page.lines for attack in line.gaps))
    return columns | ({GAPS: attacks} if attacks else {})


def study_summary(page: StudyPage) -> str:
    """The same as Markdown tables."""
    lines = []
    for fraction in page.fractions:
        seeds = sorted({seed for line in page.of(fraction) for seed in line.seeds})
        lines += [f"### {fraction:.0%} of the people to forget, seeds {', '.join(map(str, seeds))}", ""]
        for title, columns in tables(page).items():
            lines += [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
            for line in page.of(fraction):
                cells = [_cell(line, column) for column in columns]
                lines.append(f"| {line.variant} | " + " | ".join(cells) + " |")
            lines.append("")
    for reason in dict.fromkeys(line.refused for line in page.lines if line.refused):
        lines += [f"> **Note** {reason}", ""]
    lines += [f"> **Not finished** {cell}: {reason}" for cell, reason in page.unfinished.items()]
    lines.append(
        "Mean over seeds, in brackets the 95 % interval (Student's t); settings chosen on validation people."
    )
    return "\n".join(lines) + "\n"


def plots_of(lines: Sequence[Line]) -> list[Plot]:
    """The trade-off figures, a point per model, bars over seeds."""
    return tradeoff_plots({line.model: _estimates(line) for line in lines}, over="seeds")


def _words(line: Line, column: str) -> tuple[str, str]:
    """The mean and its interval; a dash for no mean, nothing for no interval."""
    mean, digits = line.numbers.get(column) or line.gaps.get(column), _DIGITS.get(column, 2)
    if mean is None or mean.interval is None:
        return number(mean and mean.value, digits), ""
    low, high = mean.interval
    return number(mean.value, digits), f"{number(low, digits)} to {number(high, digits)}"


def _cell(line: Line, column: str) -> str:
    value, interval = _words(line, column)
    return f"{value} ({interval})" if interval else value


def _estimates(line: Line) -> Estimates:
    estimates: Estimates = {}
    for column, (kind, modality) in COLUMNS.items():
        mean = line.numbers.get(column)
        if mean is not None:
            low, high = mean.interval or (None, None)
            cell = Cell(mean.value, low, high, len(mean.seeds), len(mean.seeds))
            estimates.setdefault(kind, {}).setdefault(modality, {})["exact_match"] = cell
    return estimates
