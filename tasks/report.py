"""Stage report: compare all models on one page, from what is on disk; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.errors import ArtifactError
from tasks.config import Params
from tasks.runtime.artifacts import read_json, write_json, writing
from tasks.runtime.model_cards import write_scored_cards
from tasks.runtime.results import (
    RESTORE,
    Record,
    locked_digests,
    mask_metadata,
    project_of,
    read_attacks,
    read_records,
    read_scores,
    read_splits,
)
from tasks.runtime.salt import read_salt

if TYPE_CHECKING:
    import pandas as pd

    from efface.report.figures import Plot
    from efface.report.gallery import Person
    from efface.report.measures import Estimates
    from efface.report.page import Cost, Page, Study
    from efface.report.robustness import Robustness

PACKAGES = ("efface", "torch", "transformers", "datasets", "dvc", "mlflow", "prefect", "pandas", "numpy")
CURVE = ("step", "forget_known", "retain_known", "on_front")
TRAINED = ("unlearn", "vanilla", "retrained", "base")
MASKING = ("saliency", "control", "importance")
ORDER = ("base", "vanilla", "retrained", "saliency", "importance", "unlearn", "prune", "evaluate", "attack")


def run(params: Params, root: Path = Path("data")) -> None:
    """Write the page, its numbers and its plots to ``<root>/report``."""
    import pandas as pd

    from efface.report.measures import long_table, plain_values
    from efface.report.page import render_page, render_summary
    from efface.report.robustness import attack_rows
    from efface.report.scorecard import plain_scorecard

    page = build_page(params, root)
    folder = root / "report"
    with writing(folder / "plots") as partial:
        partial.mkdir()
        plots = [*page.plots, *page.attack_plots, *page.layer_plots, *page.training]
        for plot in plots:
            (partial / f"{plot.name}.svg").write_bytes(plot.light)
        long_table(page.estimates).to_csv(partial / "comparison.csv", index=False)
        _tradeoff(page.estimates).to_csv(partial / "forget_retain.csv", index=False)
        pd.DataFrame(page.curve, columns=["model", *CURVE]).to_csv(partial / "curve.csv", index=False)
        attack_rows(page.attacks).to_csv(partial / "attacks.csv", index=False)
    write_json(folder / "metrics.json", plain_values(page.estimates))
    if page.scorecard is not None:
        write_json(folder / "scores.json", plain_scorecard(page.scorecard))
        write_scored_cards(
            folder / "cards",
            params.models,
            read_records(root),
            read_splits(root),
            page.scorecard,
            read_salt(project_of(root)),
        )
    with writing(folder / "summary.md") as partial:
        partial.write_text(render_summary(page), encoding="utf-8")
    with writing(folder / "index.html") as partial:
        partial.write_text(render_page(page), encoding="utf-8")
    missed = [target.meaning for target in page.targets if not target.met]
    typer.echo(
        f"report: {folder / 'index.html'} compares {len(page.estimates)} models "
        f"(best: {page.verdict.best or 'none'}); {len(page.targets) - len(missed)} of {len(page.targets)} "
        f"targets met" + "".join(f"; missed: {meaning}" for meaning in missed)
    )


def build_page(params: Params, root: Path) -> Page:
    """Read everything and check that it belongs together.

    Raises:
        ArtifactError: if a file is missing, damaged, or was made from other samples than the rest.
    """
    from efface.report.compose import curve_plot, tradeoff_plots
    from efface.report.measures import curve_rows
    from efface.report.page import Page
    from efface.report.published import published
    from efface.report.scorecard import scorecard
    from efface.report.targets import targets
    from efface.report.verdict import verdict

    splits = read_splits(root)
    tables, estimates = _read_tables(params, root, str(splits["benchmark"]))
    records = read_records(root)
    curve = curve_rows(_curves(params, records))
    attacks, attack_plots = _attacks(params, root)
    gallery = _gallery(params, root, tables, splits)  # checks the samples, so before anything slow is drawn
    return Page(
        study=_study(params, splits, next(iter(tables.values()))),
        verdict=verdict(tables, estimates, seed=params.seed),
        targets=targets(estimates, params.report.targets.model_dump()),
        estimates=estimates,
        plots=[*tradeoff_plots(estimates), *([curve_plot(curve, models=list(tables))] if curve else [])],
        curve=curve,
        scorecard=scorecard(tables, seed=params.seed, attacks=attacks),
        attacks=attacks,
        attack_plots=attack_plots,
        published=published(tables, str(splits["benchmark"])),
        layer_plots=_layer_plots(params, root),
        training=_training(records),
        costs=_costs(records, root),
        gallery=gallery,
        provenance=_provenance(params, root, records),
    )


def _read_tables(
    params: Params, root: Path, benchmark: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Estimates]]:
    from efface.report.measures import estimate
    from efface.report.scores import check_same_samples, check_summary, check_table, check_yardsticks

    models = list(params.models)
    check_yardsticks(models)
    tables, summaries = {}, {}
    for model in models:
        tables[model], summaries[model] = read_scores(root, model)
        check_table(model, tables[model])
        found = sorted(set(tables[model]["benchmark"].astype(str)))
        if found != [benchmark]:
            raise ArtifactError(
                f"{root / 'scores' / model}.parquet was made on {', '.join(found)}, "
                f"{root / 'prepared'} holds {benchmark}; score it again with: dvc repro"
            )
    check_same_samples(tables)
    estimates = {model: estimate(table, seed=params.seed) for model, table in tables.items()}
    for model, table in tables.items():
        check_summary(model, table, summaries[model], estimates[model])
    return tables, estimates


def _attacks(params: Params, root: Path) -> tuple[Robustness | None, list[Plot]]:
    """What attacks brought back, from the models that were attacked as they are now."""
    from efface.report.compose import relearning_plot
    from efface.report.robustness import robustness

    tables, unavailable = {}, {}
    for model in params.models:
        found = read_attacks(root, model)
        if found is None:
            continue
        table, about = found
        if about.get("digest") != read_json(root / "scores" / f"{model}.json").get("digest"):
            unavailable[model] = f"made anew since it was attacked: python -m tasks attack {model}"
            continue
        tables[model] = table
        unavailable |= {f"{model}, {attack}": why for attack, why in about.get("unavailable", {}).items()}
    attacks = robustness(tables, unavailable=unavailable)
    if attacks is None or not attacks.curves:
        return attacks, []
    return attacks, [relearning_plot(attacks.curves, models=list(params.models), metric=attacks.metric)]


def _study(params: Params, splits: Mapping[str, Any], table: pd.DataFrame) -> Study:
    from efface.report.page import Study

    entities = splits["entities"]
    forget = set(entities["forget"])
    scored = set(table.loc[table["part"] == "test", "entity_id"])
    return Study(
        benchmark=str(splits["benchmark"]),
        profile=None,
        seed=params.seed,
        forget_people=len(forget),
        people=len(forget) + len(entities["retain"]),
        scored_people=len(forget & scored),
    )


def _layer_plots(params: Params, root: Path) -> list[Plot]:
    from efface.report.compose import pruning_plot, saliency_plot

    plots = []
    mask = mask_metadata(root / "masks" / "saliency.safetensors")
    if mask is not None:
        plots.append(saliency_plot(mask["density"], variant=mask["variant"], threshold=mask.get("threshold")))
    pruned = {}
    for model, folder in params.models.items():
        path = root / "models" / folder / "pruning.json"
        if path.is_file():
            pruned[model] = read_json(path)["pruned"]
    return [*plots, pruning_plot(pruned)] if pruned else plots


def _training(records: Iterable[Record]) -> list[Plot]:
    """Curves of the methods first, then of the yardsticks."""
    from efface.report.compose import training_plot

    found = []
    for record in sorted(records, key=lambda r: TRAINED.index(r.stage) if r.stage in TRAINED else -1):
        history, summary = record.content.get("history"), record.content.get("summary", {})
        if record.stage not in TRAINED or not history:
            continue
        stopped = summary.get("stopped_by")
        ended = f"a stop rule, {stopped}" if stopped else "its last step, no stop rule met"
        name = record.name or record.stage
        found.append(training_plot(name, history, ended_by=ended, steps=summary.get("steps")))
    return found


def _curves(params: Params, records: Iterable[Record]) -> dict[str, list[dict[str, float]]]:
    """Points of the forget-retain curve of every model that was watched while it was made."""
    made = {f"unlearned/{record.name}": record for record in records if record.stage == "unlearn"}
    return {
        model: made[folder].content["summary"]["curve"]
        for model, folder in params.models.items()
        if folder in made and made[folder].content.get("summary", {}).get("curve")
    }


def _costs(records: Iterable[Record], root: Path) -> list[Cost]:
    from efface.report.page import Cost

    def mask_bytes(record: Record) -> int | None:
        path = root / "masks" / f"{record.name or record.stage}.safetensors"
        return path.stat().st_size if record.stage in MASKING and path.is_file() else None

    keys = ("seconds", "peak_memory_mib", "device", "threads")
    known = {stage: index for index, stage in enumerate(ORDER)}
    in_order = sorted(records, key=lambda record: known.get(record.stage, -1))
    return [
        Cost(record.label, **{key: record.content.get(key) for key in keys}, mask_bytes=mask_bytes(record))
        for record in in_order
    ]


def _gallery(
    params: Params, root: Path, tables: Mapping[str, pd.DataFrame], splits: Mapping[str, Any]
) -> dict[str, list[Person]]:
    from efface.data.samples import read_samples
    from efface.report.gallery import person_card, pick_people

    samples = {
        sample.sample_id: sample for sample in read_samples(root / "prepared", part=("validation", "test"))
    }
    first = next(iter(tables.values()))
    foreign = sorted(set(first["sample_id"]) - samples.keys())
    if foreign:
        raise ArtifactError(
            f"{len(foreign)} of {len(first)} scored samples (such as {foreign[0]}) are not in "
            f"{root / 'prepared'}: the score tables were made from another data set; {RESTORE}"
        )
    gallery = {}
    for set_name in ("forget", "retain"):
        chosen = pick_people(first, set_name, params.report.gallery_people, seed=params.seed)
        gallery[set_name] = [
            person_card(
                tables,
                entity,
                name=splits["names"].get(entity, entity),
                set_name=set_name,
                picture=lambda sample_id: samples[sample_id].image,
            )
            for entity in chosen
        ]
    return {set_name: people for set_name, people in gallery.items() if people}


def _provenance(params: Params, root: Path, records: Iterable[Record]) -> dict[str, dict[str, str]]:
    contents = [record.content for record in records]
    commits = sorted({str(c["git_commit"]) for c in contents if c.get("git_commit")})
    devices = sorted({str(c["device"]) for c in contents if c.get("device")})
    made = {
        "git commit of the runs": ", ".join(commits) or "not recorded",
        "device": ", ".join(devices) or "not recorded",
        "seed of training and drawing": str(params.seed),
        "seed of the benchmark": str(params.avatars.seed),
    }
    versions: dict[str, str] = {}
    for package in PACKAGES:
        recorded = sorted({str(c["versions"][package]) for c in contents if package in c.get("versions", {})})
        version = ", ".join(recorded) or _installed(package)
        if version:
            versions[package] = version
    wanted = ("data/prepared", "data/models", "data/masks", "data/benchmarks")
    hashes = {
        path: md5 for path, md5 in sorted(locked_digests(project_of(root)).items()) if path.startswith(wanted)
    }
    sections = {"Run": made, "Data, masks and models (md5 in dvc.lock)": hashes, "Packages": versions}
    return {heading: entries for heading, entries in sections.items() if entries}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tradeoff(estimates: Mapping[str, Estimates]) -> pd.DataFrame:
    """One row per model for ``dvc plots``: exact match by picture and by name, forget and retain."""
    import pandas as pd

    from efface.report.measures import lookup

    cells = [(s, m) for s in ("forget", "retain") for m in ("multimodal", "text")]
    rows = [
        {"model": model}
        | {
            f"{s}_{m}": cell.value
            for s, m in cells
            if (cell := lookup(sets, s, m, "exact_match")) is not None
        }
        for model, sets in estimates.items()
    ]
    return pd.DataFrame(rows)
