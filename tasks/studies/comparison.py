"""Compare the cells of a study: one page, one Markdown table, the numbers as JSON, and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tasks.config import REFERENCE_MODELS, Params
from tasks.runtime.artifacts import write_json, writing
from tasks.runtime.results import project_of, read_attacks, read_records, read_scores

if TYPE_CHECKING:
    import pandas as pd

    from efface.evaluation.studies import Line, Run

PAGE = Path("data/study/index.html")
_Attacks = tuple["pd.DataFrame", dict[str, Any]] | None
Cells = Mapping[str, Mapping[str, Any]]
"""Title of a finished cell to `seed, fraction, method (None: the reference models), variant, folder`."""


def run(params: Params, cells: Cells, unfinished: Mapping[str, str], folder: Path = PAGE.parent) -> None:
    """Write the comparison of the finished cells to `folder`.

    Args:
        params: says the goal.
        cells: the finished cells.
        unfinished: name of every other cell to why it did not finish; shown on the page.
        folder: where to write.

    Raises:
        EvaluationError: if no cell finished.
        ArtifactError: if scores are damaged, or of different samples within one seed and fraction.
    """
    from efface.evaluation.studies import compare
    from efface.report.study import StudyPage, render_study, study_summary

    runs = _runs(cells)
    lines = compare(runs, goal=params.study.goal)
    provenance = _provenance(params, cells)
    page = StudyPage(lines, params.study.goal, unfinished, provenance)
    write_json(
        folder / "results.json",
        {"goal": params.study.goal, "provenance": provenance, "lines": [_plain(line) for line in lines]},
    )
    with writing(folder / "summary.md") as partial:
        partial.write_text(study_summary(page), encoding="utf-8")
    with writing(folder / "index.html") as partial:
        partial.write_text(render_study(page), encoding="utf-8")
    typer.echo(study_summary(page))
    typer.echo(f"study: {folder / 'index.html'} compares {len(lines)} models over {len(cells)} cells")


def track(params: Params, cells: Cells, folder: Path = PAGE.parent) -> None:
    """Send the comparison and its cells to MLflow, or report that it does not answer."""
    from tasks.tracking import runs

    payload = runs.study_payload(cells, folder)
    experiment = f"efface-{params.benchmark.name}"
    runs.track(payload, experiment, project_of(folder.parent), quiet_if_unreachable=True)


def choices(params: Params, cells: Cells) -> dict[tuple[float, str], str]:
    """The variant with the best score on validation people, by fraction and method."""
    from efface.evaluation.studies import choose

    return {key: choice.variant for key, choice in choose(_runs(cells), goal=params.study.goal).items()}


def _runs(cells: Cells) -> list[Run]:
    """Every score table with its reference models; without those a cell is left out."""
    from efface.evaluation.studies import Run

    runs = []
    for reference in cells.values():
        if reference["method"] is not None:
            continue
        key = reference["seed"], reference["fraction"]
        shared = Path(reference["folder"]) / "data"
        references = {name: read_scores(shared, name)[0] for name in REFERENCE_MODELS}
        models = {(name, name): (table, dict[str, float](), shared) for name, table in references.items()}
        for cell in cells.values():
            if (cell["seed"], cell["fraction"]) == key and (method := cell["method"]) is not None:
                data = Path(cell["folder"]) / "data"
                costs = _costs(data, shared, method)
                models[method, cell["variant"]] = read_scores(data, method)[0], costs, data
        retrained_attacks = read_attacks(shared, "retrained")
        runs += [
            Run(
                fraction=reference["fraction"],
                seed=reference["seed"],
                model=model,
                variant=variant,
                table=table,
                base=references["base"],
                vanilla=references["vanilla"],
                retrained=references["retrained"],
                costs=costs,
                gaps=_gaps(read_attacks(data, model), retrained_attacks),
            )
            for (model, variant), (table, costs, data) in models.items()
        ]
    return runs


def _gaps(attacks: _Attacks, retrained: _Attacks) -> dict[str, float]:
    """Attack to its gap, mean over variants; none without either model's attacks."""
    from efface.attacks.outcomes import NO_ATTACK, attack_gaps, attack_outcomes

    if attacks is None or retrained is None:
        return {}
    outcomes = attack_outcomes(attacks[0], retrained[0])
    gaps = [("no attack", outcome.gap()) for outcome in outcomes if outcome.attack == NO_ATTACK]
    gaps += [(name, result.gap) for name, result in attack_gaps(attacks[0], retrained[0]).items()]
    return {name: gap for name, gap in gaps if gap is not None}


def _costs(data: Path, shared: Path, method: str) -> dict[str, float]:
    """Time and memory of the stages that make a method's model, its mask or its importance among them."""
    from efface.evaluation.studies import COSTS

    references = {record.label: record.content for record in read_records(shared)}
    records = references | {record.label: record.content for record in read_records(data)}
    own = records.get(f"unlearn@{method}") or records[f"prune@{method}"]
    needs = {"saliency": "saliency", "random": "control@random", "magnitude": "control@magnitude"}
    labels = [needs.get(own["params"].get("mask"), "")]
    if own["stage"] == "prune" and own["params"]["selection"] != "random":
        labels.append("importance")
    used = [own, *(records[label] for label in labels if label in records)]
    seconds = sum(record["seconds"] for record in used) / references["retrained"]["seconds"]
    return dict(zip(COSTS, (seconds, max(record["peak_memory_mib"] for record in used)), strict=True))


def _plain(line: Line) -> dict[str, Any]:
    return {
        "fraction": line.fraction,
        "model": line.model,
        "variant": line.variant,
        "variants": line.variants,
        "seeds": list(line.seeds),
        "refused": line.refused,
        "numbers": {
            name: {"mean": mean.value, "interval": mean.interval, "seeds": list(mean.seeds)}
            for name, mean in (*line.numbers.items(), *((f"{a}, gap", m) for a, m in line.gaps.items()))
        },
    }


def _provenance(params: Params, cells: Cells) -> dict[str, str]:
    """Where the numbers come from, as the cells' own records say."""
    records = [record for cell in cells.values() for record in read_records(Path(cell["folder"]) / "data")]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(r.content[key]) for r in records if r.content.get(key) is not None}))

    return {
        "command": "python -m flows.study",
        "seeds": ", ".join(str(seed) for seed in params.study.seeds),
        "git commit": all_of("git_commit"),
        "devices": all_of("device"),
        "threads": all_of("threads"),
    }
