"""The report: one self-contained HTML file, and a Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efface.evaluation import LEARNT, LEVEL, MANY_PEOPLE, REFERENCE_MODELS
from efface.evaluation.goals import GOALS
from efface.evaluation.side_effects import SideEffects
from efface.report.attacks import Attacks, markdown_attacks
from efface.report.comparison import Comparison, Target, conclusions, markdown_scores, warnings
from efface.report.estimates import (
    MEASURES,
    MODALITY_ORDER,
    SET_ORDER,
    Cell,
    Estimates,
    in_order,
    lookup,
)
from efface.report.figures import Plot
from efface.report.gallery import Person
from efface.report.published import Published
from efface.report.rendering import markdown_table, number, render_page

SET_MEANING = {
    "forget": "the people to forget, on training pictures and facts",
    "unseen": "the same people in reworded questions, on pictures no model was trained on if there are more",
    "retain": "the people to retain",
    "real": "people known before fine-tuning",
    "utility": "general skills, about no particular person",
    "holdout": "people no model was trained on",
    "perception": "what else the pictures of the people to forget show",
}


@dataclass(frozen=True)
class Study:
    """What was compared.

    Attributes:
        benchmark: its name.
        seed: seed of training and drawing.
        forget_people: number of people to forget.
        people: number of people that the vanilla model learnt, including those to forget.
        scored_people: number of people to forget among the scored rows.
    """

    benchmark: str
    seed: int
    forget_people: int
    people: int
    scored_people: int


@dataclass(frozen=True)
class Cost:
    """One line of the cost table; None for what was not recorded.

    Attributes:
        mask_bytes: size of the mask or importance file that the stage wrote.
    """

    stage: str
    seconds: float | None
    peak_memory_mib: float | None
    device: str | None
    threads: int | None
    mask_bytes: int | None = None


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    study: Study
    comparison: Comparison
    targets: Sequence[Target]
    estimates: Mapping[str, Estimates]
    plots: Sequence[Plot]
    published: Published | None = None
    side_effects: Mapping[str, SideEffects] = field(default_factory=dict)
    attacks: Attacks | None = None
    attack_plots: Sequence[Plot] = ()
    curve: Sequence[Mapping[str, Any]] = ()
    layer_plots: Sequence[Plot] = ()
    training: Sequence[Plot] = ()
    costs: Sequence[Cost] = ()
    gallery: Mapping[str, Sequence[Person]] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One comparison table.

    Attributes:
        measure: name of the measure.
        title, meaning: of the measure.
        columns: set, modality, and the number of rows behind it.
        groups: heading to model to its cells, reference models apart from methods.
    """

    measure: str
    title: str
    meaning: str
    columns: list[tuple[str, str, str]]
    groups: dict[str, dict[str, list[Cell | None]]]

    @property
    def sets(self) -> dict[str, int]:
        """Set to the number of columns it spans."""
        names = [name for name, _, _ in self.columns]
        return {name: names.count(name) for name in names}


def blocks(estimates: Mapping[str, Estimates]) -> list[Block]:
    """The comparison tables, one per measure that has numbers."""
    result = []
    for measure, (title, meaning) in MEASURES.items():
        columns = []
        for name in in_order((name for sets in estimates.values() for name in sets), SET_ORDER):
            for modality in MODALITY_ORDER:
                cells = [lookup(sets, name, modality, measure) for sets in estimates.values()]
                sizes = sorted({(cell.n, cell.people) for cell in cells if cell is not None})
                if sizes:
                    columns.append((name, modality, " / ".join(f"n={n} ({people})" for n, people in sizes)))
        if not columns:
            continue
        groups: dict[str, dict[str, list[Cell | None]]] = {}
        for model in sorted(estimates, key=lambda model: model not in REFERENCE_MODELS):
            heading = "Reference models" if model in REFERENCE_MODELS else "Unlearned models"
            row = [lookup(estimates[model], name, modality, measure) for name, modality, _ in columns]
            groups.setdefault(heading, {})[model] = row
        result.append(Block(measure, title, meaning, columns, groups))
    return result


def render_report(report: Report) -> str:
    """The whole report as one HTML document."""
    return render_page(
        "report.html.j2",
        report=report,
        blocks=blocks(report.estimates),
        conclusions=conclusions(report.comparison, report.estimates),
        warnings=warnings(report.estimates),
        set_meaning=SET_MEANING,
        goals=GOALS,
        learnt=LEARNT,
        level=f"{LEVEL:.0%}",
        many=MANY_PEOPLE,
        holes=holes(report.side_effects),
    )


def render_summary(report: Report) -> str:
    """The conclusions and a short table of knowledge as Markdown, for a pull request."""
    tables = {block.measure: block for block in blocks(report.estimates)}
    block = tables.get("knowledge") or next(iter(tables.values()))
    head = ["model", *(f"{name} {modality}" for name, modality, _ in block.columns)]
    rows = [
        [f"*{model}*" if model in REFERENCE_MODELS else model]
        + [number(cell.value if cell else None) for cell in cells]
        for models in block.groups.values()
        for model, cells in models.items()
    ]
    study = report.study
    lines = [
        f"### {study.benchmark}: {study.forget_people} of {study.people} people to forget, seed {study.seed}",
        "",
        " ".join(conclusions(report.comparison, report.estimates)),
        "",
        *(f"> **Warning** {warning}\n" for warning in warnings(report.estimates)),
        *markdown_table(head, rows),
        "",
        f"{block.title}: {block.meaning}, 0 to 1; reference models in italics.",
        "",
        markdown_scores(report.comparison).rstrip(),
    ]
    lines += [f"\n> {reason}" for reason in (report.published.refused if report.published else ())]
    if report.side_effects:
        lines += ["", holes(report.side_effects)]
    if report.attacks is not None:
        lines += ["", markdown_attacks(report.attacks).rstrip()]
    return "\n".join(lines) + "\n"


def holes(side_effects: Mapping[str, SideEffects]) -> str:
    """One sentence about side effects that the means hide, over all methods."""
    of_methods = [effects for model, effects in side_effects.items() if model not in REFERENCE_MODELS]
    near = [
        (others.value - kept.value, kept.value, others.value, kind)
        for effects in of_methods
        if (others := effects.kept.get("others"))
        for kind, kept in effects.kept.items()
        if kept and kind != "others"
    ]
    left = [
        (e.worst - e.left, e.worst, e.left) for e in of_methods if e.worst is not None and e.left is not None
    ]
    parts = []
    if near:
        _, neighbours_left, others_left, kind = max(near)
        parts.append(
            f"of vanilla's knowledge of the people most like those to forget (by {kind}) "
            f"{neighbours_left:.2f} is left, of the others {others_left:.2f}"
        )
    if left:
        _, worst, mean = max(left)
        parts.append(f"for one person to forget {worst:.2f} is left where the mean is {mean:.2f}")
    if not parts:
        return "Side effects: not available, as vanilla does not lead by enough on anybody."
    return f"Side effects, the widest gaps over all methods: {'; '.join(parts)}."
