"""Stage report: compare all models on one page, from files on disk, without loading a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.errors import ArtifactError
from tasks.config import STAGES, Params
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

    from efface.data.samples import Sample
    from efface.evaluation.side_effects import SideEffects
    from efface.report.attacks import Attacks
    from efface.report.estimates import Estimates
    from efface.report.figures import Plot
    from efface.report.gallery import Person
    from efface.report.report_page import Report

PACKAGES = ("efface", "torch", "transformers", "datasets", "dvc", "mlflow", "prefect", "pandas", "numpy")
CURVE = ("step", "forget_known", "retain_known", "on_front")
TRAINED = ("unlearn", "vanilla", "retrained", "base")
METHOD_STAGES = ("unlearn", "prune")
MASKING = ("saliency", "control", "importance")
HASHED = ("data/prepared", "data/models", "data/masks", "data/benchmarks")


def run(params: Params, root: Path = Path("data")) -> None:
    """Write the page, its numbers and its plots to ``<root>/report``."""
    import pandas as pd

    from efface.report.attacks import attack_rows
    from efface.report.comparison import plain_comparison
    from efface.report.estimates import long_table, plain_values, value_of
    from efface.report.report_page import render_report, render_summary

    report = build_report(params, root)
    folder = root / "report"
    cells = [(name, modality) for name in ("forget", "retain") for modality in ("multimodal", "text")]
    tradeoff = [
        {"model": model} | {f"{s}_{m}": value_of(sets, s, m, "exact_match") for s, m in cells}
        for model, sets in report.estimates.items()
    ]
    with writing(folder / "plots") as partial:
        partial.mkdir()
        for plot in (*report.plots, *report.attack_plots, *report.layer_plots, *report.training):
            (partial / f"{plot.name}.svg").write_bytes(plot.svg)
        long_table(report.estimates).to_csv(partial / "comparison.csv", index=False)
        pd.DataFrame(tradeoff).to_csv(partial / "forget_retain.csv", index=False)
        pd.DataFrame(report.curve, columns=["model", *CURVE]).to_csv(partial / "curve.csv", index=False)
        attack_rows(report.attacks).to_csv(partial / "attacks.csv", index=False)
    write_json(folder / "metrics.json", plain_values(report.estimates))
    side_effects = {model: asdict(effects) for model, effects in report.side_effects.items()}
    write_json(folder / "scores.json", plain_comparison(report.comparison) | {"side_effects": side_effects})
    write_scored_cards(
        folder / "cards",
        params.models,
        read_records(root),
        read_splits(root),
        report.comparison,
        read_salt(project_of(root)),
    )
    with writing(folder / "summary.md") as partial:
        partial.write_text(render_summary(report), encoding="utf-8")
    with writing(folder / "index.html") as partial:
        partial.write_text(render_report(report), encoding="utf-8")
    missed = [target.meaning for target in report.targets if not target.met]
    typer.echo(
        f"report: {folder / 'index.html'} compares {len(report.estimates)} models; "
        f"{len(report.targets) - len(missed)} of {len(report.targets)} targets met"
        + "".join(f"; missed: {meaning}" for meaning in missed)
    )


def build_report(params: Params, root: Path) -> Report:
    """Read all results and check that they belong together.

    Raises:
        ArtifactError: if a file is missing, damaged, or made from other samples than the rest.
    """
    from efface.report.comparison import compare, targets
    from efface.report.estimates import curve_rows
    from efface.report.figures import curve_plot, tradeoff_plots
    from efface.report.published import published
    from efface.report.report_page import Report, Study

    splits = read_splits(root)
    benchmark = str(splits["benchmark"])
    tables, estimates = _read_tables(params, root, benchmark)
    samples = _samples(root, tables)  # checks them, so before slow figures are drawn
    records = read_records(root)
    curve = curve_rows(_curves(params, records))
    attacks, attack_plots = _attacks(params, root)
    forget, table = set(splits["entities"]["forget"]), next(iter(tables.values()))
    return Report(
        study=Study(
            benchmark=benchmark,
            seed=params.seed,
            forget_people=len(forget),
            people=len(forget) + len(splits["entities"]["retain"]),
            scored_people=len(forget & set(table.loc[table["part"] == "test", "entity_id"])),
        ),
        comparison=compare(tables, seed=params.seed, attacks=attacks),
        targets=targets(estimates, params.report.targets.model_dump()),
        estimates=estimates,
        plots=[*tradeoff_plots(estimates), *([curve_plot(curve, models=list(tables))] if curve else [])],
        curve=curve,
        attacks=attacks,
        attack_plots=attack_plots,
        published=published(tables, benchmark),
        side_effects=_side_effects(tables, samples, splits),
        layer_plots=_layer_plots(params, root),
        training=_training(records),
        costs=_costs(records, root),
        gallery=_gallery(params, samples, tables, splits),
        provenance=_provenance(params, root, records),
    )


def _read_tables(
    params: Params, root: Path, benchmark: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Estimates]]:
    from efface.evaluation.tables import check_same_samples
    from efface.report.checks import check_table
    from efface.report.estimates import estimate

    tables = {}
    for model in params.models:
        tables[model], _ = read_scores(root, model)
        check_table(model, tables[model])
        benchmarks = sorted(set(tables[model]["benchmark"].astype(str)))
        if benchmarks != [benchmark]:
            raise ArtifactError(
                f"{root / 'scores' / model}.parquet was made on {', '.join(benchmarks)}, "
                f"{root / 'prepared'} holds {benchmark}; score it again with: dvc repro"
            )
    check_same_samples(tables)
    return tables, {model: estimate(table) for model, table in tables.items()}


def _attacks(params: Params, root: Path) -> tuple[Attacks | None, list[Plot]]:
    """Results of attacks on the models as they are now, how robust they are, and curves over budgets."""
    from efface.report.attacks import collect_attacks
    from efface.report.figures import budget_plot, robustness_plot

    tables, unavailable = {}, {}
    floors: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    lacking: dict[tuple[str, str], list[str]] = {}
    forget = set(read_splits(root)["entities"]["forget"])
    costs_of = {
        record.name: record.content["summary"].get("seconds", {})
        for record in read_records(root)
        if record.stage == "attack"
    }
    for model in params.models:
        files = read_attacks(root, model)
        if files is None:
            continue
        table, about = files
        if about.get("digest") != read_json(root / "scores" / f"{model}.json").get("digest"):
            unavailable[model] = f"the model changed after it was attacked: python -m tasks attack {model}"
            continue
        if others := set(table["entity_id"]) - forget:
            unavailable[model] = (
                f"it was attacked when other people were forgotten (such as {min(others)}): "
                f"python -m tasks attack {model}"
            )
            continue
        tables[model] = table
        floors |= about.get("floors", {})
        for attack, cost in costs_of.get(model, {}).items():
            seconds[attack] = seconds.get(attack, 0.0) + cost
        for attack, why in about.get("unavailable", {}).items():
            lacking.setdefault((attack, why), []).append(model)
    unavailable |= {f"{attack} ({', '.join(names)})": why for (attack, why), names in lacking.items()}
    costs = {attack: total / len(tables) for attack, total in seconds.items()}
    attacks = collect_attacks(tables, floors=floors, seconds=costs, unavailable=unavailable)
    if attacks is None:
        return None, []
    models = list(params.models)
    plots = [robustness_plot(attacks, models=models)] if attacks.worst else []
    for attack, curves in attacks.curves.items():
        plots.append(budget_plot(attack, curves, models=models, metric=attacks.metric))
    return attacks, plots


def _layer_plots(params: Params, root: Path) -> list[Plot]:
    from efface.report.figures import pruning_plot, saliency_plot

    plots = []
    mask = mask_metadata(root / "masks" / "saliency.safetensors")
    if mask is not None:
        plots.append(
            saliency_plot(
                mask["density"],
                variant=mask["variant"],
                threshold=mask.get("threshold"),
                kappa=(mask.get("stability") or {}).get("kappa"),
            )
        )
    pruned = {}
    for model, folder in params.models.items():
        path = root / "models" / folder / "pruning.json"
        if path.is_file():
            pruned[model] = read_json(path)["pruned"]
    return [*plots, pruning_plot(pruned)] if pruned else plots


def _training(records: Iterable[Record]) -> list[Plot]:
    """Training curves, first of the methods, then of the reference models."""
    from efface.report.figures import training_plot

    plots = []
    trained = [record for record in records if record.stage in TRAINED and record.content.get("history")]
    for record in sorted(trained, key=lambda record: TRAINED.index(record.stage)):
        summary = record.content.get("summary", {})
        stop = summary.get("stopped_by")
        plots.append(
            training_plot(
                record.name or record.stage,
                record.content["history"],
                ended_by=f"a stop rule, {stop}" if stop else "its last step, no stop rule met",
                steps=summary.get("steps"),
            )
        )
    return plots


def _curves(params: Params, records: Iterable[Record]) -> dict[str, list[dict[str, float]]]:
    """Points of the forget-retain curve of every model that was measured while it unlearned."""
    by_folder = {f"unlearned/{record.name}": record for record in records if record.stage in METHOD_STAGES}
    return {
        model: by_folder[folder].content["summary"]["curve"]
        for model, folder in params.models.items()
        if folder in by_folder and by_folder[folder].content.get("summary", {}).get("curve")
    }


def _costs(records: Iterable[Record], root: Path) -> list[Any]:
    from efface.report.report_page import Cost

    keys = ("seconds", "peak_memory_mib", "device", "threads")
    costs, order = [], list(STAGES)
    for record in sorted(records, key=lambda record: order.index(record.stage)):
        mask = root / "masks" / f"{record.name or record.stage}.safetensors"
        size = mask.stat().st_size if record.stage in MASKING and mask.is_file() else None
        values = {key: record.content.get(key) for key in keys}
        costs.append(Cost(record.label, **values, mask_bytes=size))
    return costs


def _samples(root: Path, tables: Mapping[str, pd.DataFrame]) -> dict[str, Sample]:
    """The evaluation samples by id, after checking that the score tables are about them."""
    from efface.data.samples import read_samples

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
    return samples


def _side_effects(
    tables: Mapping[str, pd.DataFrame], samples: Mapping[str, Sample], splits: Mapping[str, Any]
) -> dict[str, SideEffects]:
    """What else each model, except base and vanilla, lost with the people to forget."""
    from efface.evaluation.side_effects import neighbour_groups, side_effects, thumbnail

    base, vanilla, floor = (tables[model] for model in ("base", "vanilla", "retrained"))
    pictures = {
        sample.entity_id: sample.image
        for sample in reversed(list(samples.values()))  # the first picture of each
        if sample.set in ("forget", "retain") and sample.image_bytes is not None
    }
    thumbnails = {person: thumbnail(picture) for person, picture in pictures.items() if picture is not None}
    test = vanilla[(vanilla["part"] == "test") & (vanilla["set"] == "forget")]
    people = sorted(set(test["entity_id"].astype(str)))
    groups = neighbour_groups(vanilla, people, names=splits["names"], thumbnails=thumbnails)
    return {
        model: side_effects(table, base=base, vanilla=vanilla, floor=floor, groups=groups)
        for model, table in tables.items()
        if model not in ("base", "vanilla")
    }


def _gallery(
    params: Params,
    samples: Mapping[str, Sample],
    tables: Mapping[str, pd.DataFrame],
    splits: Mapping[str, Any],
) -> dict[str, list[Person]]:
    from efface.report.gallery import person_card, pick_people

    first = next(iter(tables.values()))
    gallery = {}
    for name in ("forget", "retain"):
        gallery[name] = [
            person_card(
                tables,
                entity,
                name=splits["names"].get(entity, entity),
                set_name=name,
                picture=lambda sample_id: samples[sample_id].image,
            )
            for entity in pick_people(first, name, params.report.gallery_people, seed=params.seed)
        ]
    return {name: people for name, people in gallery.items() if people}


def _provenance(params: Params, root: Path, records: Iterable[Record]) -> dict[str, dict[str, str]]:
    contents = [record.content for record in records]
    commits = sorted({str(c["git_commit"]) for c in contents if c.get("git_commit")})
    devices = sorted({str(c["device"]) for c in contents if c.get("device")})
    versions: dict[str, str] = {}
    for package in PACKAGES:
        recorded = sorted({str(c["versions"][package]) for c in contents if package in c.get("versions", {})})
        try:
            versions[package] = ", ".join(recorded) or metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    digests = sorted(locked_digests(project_of(root)).items())
    sections = {
        "Run": {
            "git commit of the runs": ", ".join(commits) or "not recorded",
            "device": ", ".join(devices) or "not recorded",
            "seed of training and drawing": str(params.seed),
            "seed of the benchmark": str(params.avatars.seed),
        },
        "Data, masks and models (md5 in dvc.lock)": {p: md5 for p, md5 in digests if p.startswith(HASHED)},
        "Packages": versions,
    }
    return {heading: entries for heading, entries in sections.items() if entries}
