"""Compare the cells of a study: one page, one Markdown table, the numbers as JSON, and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from tasks.config import Params
from tasks.runtime.artifacts import write_json, writing
from tasks.runtime.results import project_of, read_records
from tasks.studies.cells import Finished, study_cells
from tasks.studies.plan import StudyPlan, settings_file

FOLDER = Path("data/study")
PAGE = FOLDER / "index.html"
SETTINGS = FOLDER / "settings.yaml"


def choose(params: Params, plan: StudyPlan, finished: Sequence[Finished]) -> dict[str, int]:
    """Method to the number of the settings with the best mean score on the tuning folds; writes SETTINGS.

    A method without a scored setting is left out, unless no method has one.
    """
    from ruamel.yaml import YAML

    from efface.evaluation.studies import choose_settings

    settings = choose_settings(study_cells(finished), goal=params.study.goal)
    scored = {name: setting.index for name, setting in settings.items() if setting.refused is None}
    # If vanilla learnt too little for any score, the first settings run, and the page says why.
    selected = scored or {name: setting.index for name, setting in settings.items()}
    selected |= {
        name: 0 for name, method in plan.methods.items() if len(method.settings) == 1 and name in settings
    }
    selected = {name: selected[name] for name in plan.methods if name in selected}
    with writing(SETTINGS) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f"# Chosen on seed {params.study.tuning_seed} by the goal {params.study.goal}.\n")
        YAML().dump(settings_file(params, plan, selected), file)
    for name, words in settings_words(plan).items():
        index = selected.get(name)
        typer.echo(f"study: {name}: " + ("no setting has a score" if index is None else words[index]))
    typer.echo(
        f"study: {SETTINGS} holds them; write them into params.yaml with: python -m tasks use {SETTINGS}"
    )
    return selected


def settings_words(plan: StudyPlan) -> dict[str, list[str]]:
    """Method to its settings in words, in the order of their numbers, for methods with several."""
    return {
        name: [", ".join(f"{key} {value}" for key, value in settings.items()) for settings in method.settings]
        for name, method in plan.methods.items()
        if len(method.settings) > 1
    }


def run(params: Params, plan: StudyPlan, finished: Sequence[Finished], unfinished: Mapping[str, str]) -> None:
    """Write the comparison of the finished cells to `data/study`.

    Args:
        params: parameters, with goal, seeds and folds.
        plan: the methods and their controls.
        finished: the finished cells, including those that chose settings.
        unfinished: every other cell, or method in a cell, to why it has no result; shown on the page.

    Raises:
        EvaluationError: if no reported cell has finished.
        ArtifactError: if scores are damaged, or made from different samples within one fold.
    """
    from efface.evaluation.intervals import Fold
    from efface.evaluation.studies import compare_study
    from efface.report.study_page import StudyPage, plain_study, render_study, study_summary

    study = params.study
    compared = compare_study(
        study_cells(finished),
        goal=study.goal,
        methods=list(plan.methods),
        folds=[Fold(seed, fold) for seed in study.seeds for fold in study.fold_numbers],
        controls=plan.controls,
    )
    provenance = _provenance(params, finished)
    page = StudyPage(compared, settings_words(plan), unfinished, provenance)
    write_json(FOLDER / "results.json", plain_study(compared) | {"provenance": provenance})
    with writing(FOLDER / "summary.md") as partial:
        partial.write_text(study_summary(page), encoding="utf-8")
    with writing(PAGE) as partial:
        partial.write_text(render_study(page), encoding="utf-8")
    typer.echo(study_summary(page))
    typer.echo(f"study: {PAGE} compares {len(plan.methods)} methods over {len(finished)} cells")


def track(params: Params, finished: Sequence[Finished]) -> None:
    """Send the comparison and its cells to MLflow, or report that it does not answer."""
    from tasks.tracking import runs

    payload = runs.study_payload(finished, FOLDER)
    experiment = f"efface-{params.benchmark.name}"
    runs.track(payload, experiment, project_of(FOLDER.parent), quiet_if_unreachable=True)


def _provenance(params: Params, finished: Sequence[Finished]) -> dict[str, str]:
    """Where the numbers come from, according to the cells' records."""
    records = [record for cell in finished for record in read_records(cell.folder)]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(r.content[key]) for r in records if r.content.get(key) is not None}))

    return {
        "command": "python -m flows.study",
        "seeds": ", ".join(str(seed) for seed in params.study.seeds),
        "folds of each": f"{len(params.study.fold_numbers)} of {params.study.folds or 1}",
        "git commit": all_of("git_commit"),
        "devices": all_of("device"),
        "threads": all_of("threads"),
    }
