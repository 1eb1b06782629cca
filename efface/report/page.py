"""The page: one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from efface.report.figures import Plot
from efface.report.gallery import Person
from efface.report.measures import (
    LEVEL,
    MEASURES,
    MODALITY_ORDER,
    RESAMPLES,
    SET_ORDER,
    Estimate,
    Estimates,
    Measure,
    lookup,
    ordered,
)
from efface.report.published import Published
from efface.report.robustness import Robustness, markdown_robustness
from efface.report.scorecard import Scorecard, leading_sentences, markdown_scorecard
from efface.report.scores import YARDSTICKS
from efface.report.targets import Target
from efface.report.verdict import LEARNT, Verdict

SET_MEANING = {
    "forget": "the people to forget, on the pictures and facts that were trained",
    "unseen": "the same people on pictures no model was trained on, with reworded questions",
    "retain": "people who must stay known",
    "real": "people known before fine-tuning",
    "utility": "general skills, no particular person",
    "holdout": "people no model was trained on",
}


@dataclass(frozen=True)
class Study:
    """What was compared."""

    benchmark: str
    profile: str | None
    seed: int
    forget_people: int
    people: int
    """People the vanilla model learnt, forget people included."""
    scored_people: int
    """Forget people among the scored rows."""


@dataclass(frozen=True)
class Cost:
    """One line of the cost table; None where it was not recorded."""

    stage: str
    seconds: float | None
    peak_memory_mib: float | None
    device: str | None
    threads: int | None
    mask_bytes: int | None = None
    """Size of the file of the mask, or of the neurons' statistics, that the stage wrote."""


@dataclass(frozen=True)
class Page:
    """Everything the page shows."""

    study: Study
    verdict: Verdict
    targets: Sequence[Target]
    estimates: Mapping[str, Estimates]
    plots: Sequence[Plot]
    scorecard: Scorecard | None = None
    published: Published | None = None
    attacks: Robustness | None = None
    attack_plots: Sequence[Plot] = ()
    curve: Sequence[Mapping[str, Any]] = ()
    layer_plots: Sequence[Plot] = ()
    training: Sequence[Plot] = ()
    costs: Sequence[Cost] = ()
    gallery: Mapping[str, Sequence[Person]] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One comparison table: a measure, its columns, and a cell or None per model and column."""

    measure: Measure
    sets: list[tuple[str, int]]
    """Set and how many columns it spans."""
    columns: list[tuple[str, str, str]]
    """Set, modality, and the number of rows behind it."""
    groups: list[tuple[str, list[tuple[str, list[Estimate | None]]]]]
    """Heading and rows: yardsticks apart from methods."""


def blocks(estimates: Mapping[str, Estimates]) -> list[Block]:
    """The comparison tables, one per measure that has numbers."""
    found = []
    for measure in MEASURES:
        cells = [
            (set_name, modality)
            for set_name in ordered((s for sets in estimates.values() for s in sets), SET_ORDER)
            for modality in MODALITY_ORDER
            if any(lookup(sets, set_name, modality, measure.name) for sets in estimates.values())
        ]
        if not cells:
            continue
        spans: dict[str, int] = {}
        for set_name, _ in cells:
            spans[set_name] = spans.get(set_name, 0) + 1
        yardsticks = [model for model in YARDSTICKS if model in estimates]
        methods = [model for model in estimates if model not in YARDSTICKS]
        groups = [
            (heading, [(m, [lookup(estimates[m], s, mod, measure.name) for s, mod in cells]) for m in models])
            for heading, models in (("Yardsticks", yardsticks), ("Unlearned models", methods))
            if models
        ]
        columns = [(s, mod, _sample_size(estimates, s, mod, measure.name)) for s, mod in cells]
        found.append(Block(measure, list(spans.items()), columns, groups))
    return found


def _sample_size(estimates: Mapping[str, Estimates], set_name: str, modality: str, measure: str) -> str:
    cells = (lookup(sets, set_name, modality, measure) for sets in estimates.values())
    sizes = sorted({(cell.n, cell.people) for cell in cells if cell is not None})
    return " / ".join(f"n={n} ({people})" for n, people in sizes)


def render_page(page: Page) -> str:
    """The whole report as one HTML document, pictures and style inside, no script."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("efface.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = svg_uri
    environment.filters["number"] = number
    template = environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        page=page,
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        blocks=blocks(page.estimates),
        leading=leading_sentences(page.scorecard) if page.scorecard else [],
        set_meaning=SET_MEANING,
        learnt=LEARNT,
        level=f"{LEVEL:.0%}",
        resamples=f"{RESAMPLES:,}",
    )


def render_summary(page: Page) -> str:
    """A short Markdown table of exact match for a pull request, the verdict above it."""
    block = next(b for b in blocks(page.estimates) if b.measure.name == "exact_match")
    head = ["model", *(f"{set_name} {modality}" for set_name, modality, _ in block.columns)]
    lines = [
        f"### {page.study.benchmark}: {page.study.forget_people} of {page.study.people} people to forget, "
        f"seed {page.study.seed}",
        "",
        " ".join(page.verdict.sentences),
        "",
        *(f"> **Warning** {warning}\n" for warning in page.verdict.warnings),
        "| " + " | ".join(head) + " |",
        "|" + "---|" + "---:|" * len(block.columns),
    ]
    for _, rows in block.groups:
        for model, cells in rows:
            shown = f"*{model}*" if model in YARDSTICKS else model
            lines.append(f"| {shown} | " + " | ".join(number(c.value if c else None) for c in cells) + " |")
    lines += [
        "",
        "Exact match of the fact, 0 to 1; yardsticks in italics. Intervals: `data/report/index.html`.",
    ]
    if page.scorecard is not None:
        lines += ["", markdown_scorecard(page.scorecard).rstrip()]
    if page.attacks is not None:
        lines += ["", markdown_robustness(page.attacks).rstrip()]
    return "\n".join(lines) + "\n"


def number(value: Any, digits: int = 3) -> str:
    """A number as every table writes it; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def svg_uri(content: bytes) -> str:
    """An SVG picture as an address that needs no file."""
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()
