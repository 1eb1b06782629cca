"""Sending finished results to MLflow as runs, from payloads read from disk.

Nothing is tracked while a stage computes: results are on disk first. A run has the digest of its source files
and, as its last tag, `efface.complete`, so a later call sends only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import typer

from efface.errors import ArtifactError
from efface.evaluation.goals import GOALS, PARTS
from efface.evaluation.side_effects import metrics_of
from efface.evaluation.summary import METRICS_FILE, model_metrics
from efface.model_card import without_metadata
from tasks.config import REFERENCE_MODELS, Params
from tasks.runtime.artifacts import digest, read_json, write_json
from tasks.runtime.results import (
    Record,
    locked_digests,
    mask_metadata,
    project_of,
    read_records,
    read_scores,
    read_splits,
)
from tasks.tracking.client import TrackingError, mlflow_client, redact, tracking_lock, tracking_uri
from tasks.tracking.registry import TEXT_LIMIT, ModelPayload, Registry, Version, alias_of, registered_name

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Run
    from mlflow.tracking import MlflowClient

    from tasks.studies.cells import Finished

RECEIPT = Path(".efface/mlflow.json")
"""File that says where the result is in MLflow; exists only after all of it was sent."""
COMPLETE = "efface.complete"
DIGEST = "efface.digest"
REPORT = "efface.report_digest"
ROLE = "efface.role"
TRAINING_STAGES = ("base", "vanilla", "retrained", "unlearn", "prune")
_DESCRIPTIONS = {
    "base": "Before training on the people of the benchmark.",
    "vanilla": "base, trained on all people; unlearning starts from it.",
    "retrained": "base, trained on all people but those to forget; the reference for unlearning.",
}
PAGE_QUERY = "workflowType=machine_learning"
"""Query that opens MLflow's pages for model training; their default is GenAI."""
VIEW = "efface"
"""Share key of an experiment's view: scores and ten metrics, a group per method (`?viewStateShareKey=`)."""
SCORES = (*(f"score/{goal}" for goal in GOALS), "study/score")
"""Score of a model by goal against retrained and, of a study's cell, by the study's goal against base."""
DIGITS = 4
"""Decimals of scores and their parts; MLflow's columns are narrow."""


@dataclass(frozen=True)
class RunPayload:
    """The content of one MLflow run, and the runs nested in it."""

    name: str
    role: str
    digest: str
    started: int
    """Milliseconds since 1970, as is `ended`."""
    ended: int
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    """Training steps and their values."""
    tags: dict[str, str] = field(default_factory=dict)
    files: Sequence[tuple[Path, str]] = ()
    """File and the artifact folder it goes to."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Artifact path to text; secrets in it are redacted."""
    datasets: Sequence[DatasetInput] = ()
    model: ModelPayload | None = None
    children: Sequence[RunPayload] = ()
    report: Path | None = None
    """Folder sent as the artifact folder `report`, and sent again if only it changed."""
    description: str = ""


@dataclass
class Sent:
    """Where a payload is in MLflow."""

    experiment: str
    run: str
    version: Version | None = None
    """Version of the payload's own model."""
    counts: Counter[str] = field(default_factory=Counter)
    """What this call sent; empty if everything was complete."""


def run(params: Params, root: Path = Path("data"), quiet_if_unreachable: bool = False) -> None:
    """Send the result under ``root`` to MLflow.

    Args:
        params: lists the models of the result.
        root: the data folder.
        quiet_if_unreachable: print a TrackingError instead of raising it, for the pipeline.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses.
        ArtifactError: if the result on disk is incomplete or damaged.
    """
    project = project_of(root)
    receipt = project / RECEIPT
    receipt.unlink(missing_ok=True)
    payload = pipeline_payload(params, root)
    sent = track(payload, f"efface-{payload.params['benchmark']}", project, quiet_if_unreachable)
    if sent is not None:
        where = {"experiment": sent.experiment, "run": sent.run, "at": redact(tracking_uri(project))}
        write_json(receipt, where)


def track(
    payload: RunPayload, experiment: str, project: Path, quiet_if_unreachable: bool = False
) -> Sent | None:
    """Send a payload and print what was sent; None if MLflow refused it and that is tolerated."""
    try:
        sent = send(payload, experiment, project)
    except TrackingError as error:
        if not quiet_if_unreachable:
            raise
        typer.echo(f"track: {error}")
        return None
    uri = redact(tracking_uri(project))
    counts = ", ".join(f"{number} {things}" for things, number in sent.counts.items())
    if counts:
        typer.echo(f"track: {payload.name}: sent {counts} to {uri} (experiment {experiment})")
    else:
        typer.echo(f"track: nothing new; {payload.name} is complete at {uri}")
    return sent


def send(payload: RunPayload, experiment: str, project: Path) -> Sent:
    """Send the parts of a payload that MLflow lacks; runs and models deleted there are sent again.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses.
    """
    with tracking_lock(project), mlflow_client(project) as client:
        sent = Sent(_experiment(client, experiment, project).experiment_id, "")
        sent.run = _send_run(client, payload, project, sent, parent=None)
    return sent


def _send_run(
    client: MlflowClient, payload: RunPayload, project: Path, sent: Sent, parent: str | None
) -> str:
    where = f"tags.`{DIGEST}` = '{payload.digest}' and tags.`{ROLE}` = '{payload.role}'"
    where += f" and tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
    runs = client.search_runs([sent.experiment], where, max_results=100)
    complete = [run for run in runs if run.data.tags.get(COMPLETE) == "true"]
    if complete:
        tags, run_id = complete[0].data.tags, complete[0].info.run_id
        sent.counts.update({"updates": 1} if _update(client, complete[0], payload) else {})
    else:
        tags = {DIGEST: payload.digest, ROLE: payload.role, "mlflow.source.name": "python -m tasks track"}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        run = (
            runs[0]
            if runs
            else client.create_run(
                sent.experiment, start_time=payload.started, tags=tags, run_name=payload.name
            )
        )
        run_id = run.info.run_id
        _log(client, run_id, payload)
        sent.counts["runs"] += 1
    for child in payload.children:
        _send_run(client, child, project, sent, run_id)
    if payload.report is not None and tags.get(REPORT) != (current := digest(payload.report)):
        client.log_artifacts(run_id, str(payload.report), "report")
        client.set_tag(run_id, "mlflow.note.content", redact(payload.description)[:TEXT_LIMIT])
        client.set_tag(run_id, REPORT, current)
        sent.counts["reports"] += 1
    if payload.model is not None:
        registry = Registry(project, payload.model.name)
        version, new = registry.register(run_id, payload.model)
        sent.counts.update({"model versions": 1} if new else {})
        address = f"models:/{registry.name}/{version.number}"
        if tags.get("efface.model") != address:
            client.set_tag(run_id, "efface.model", address)
        if payload.model.alias and registry.set_alias(payload.model.alias, version.number):
            sent.counts["aliases"] += 1
        sent.version = version if parent is None else sent.version
    if not complete:
        client.set_terminated(run_id, "FINISHED", payload.ended)
        client.set_tag(run_id, COMPLETE, "true")
    return str(run_id)


def _log(client: MlflowClient, run_id: str, payload: RunPayload) -> None:
    """Log all values and files; repeating it after an interruption changes nothing."""
    from mlflow.entities import Metric, Param, RunTag

    # Times come from the record: logged again, a value is the same row.
    duration = max(1, payload.ended - payload.started)
    metrics = [Metric(key, value, payload.ended, 0) for key, value in payload.metrics.items()]
    metrics += [
        Metric(f"training/{key}", value, payload.started + duration * index // len(payload.history), step)
        for index, (step, values) in enumerate(payload.history)
        for key, value in values.items()
    ]
    params = [Param(key, redact(value)) for key, value in payload.params.items()]
    tags = [RunTag(key, redact(value)[:TEXT_LIMIT]) for key, value in payload.tags.items()]
    client.log_batch(run_id, metrics, params, tags)
    client.log_inputs(run_id, list(payload.datasets))
    for path, folder in payload.files:
        client.log_artifact(run_id, str(path), folder)
    for name, text in payload.texts.items():
        client.log_text(run_id, redact(text), name)


def _update(client: MlflowClient, run: Run, payload: RunPayload) -> bool:
    """Log the metrics that a complete run lacks, or has with other values, as a later report found them."""
    from mlflow.entities import Metric

    logged, now = run.data.metrics, int(time.time() * 1000)
    changed = {key: value for key, value in payload.metrics.items() if logged.get(key) != value}
    metrics = [Metric(key, value, now, 0) for key, value in changed.items() if not math.isnan(value)]
    if metrics:
        client.log_batch(run.info.run_id, metrics)
    return bool(metrics)


def _experiment(client: MlflowClient, name: str, project: Path) -> Experiment:
    """The experiment, created or restored if necessary. A bare database stores its files in the project."""
    uri = tracking_uri(project)
    location = None if uri.startswith("http") else (project / "mlartifacts" / name).as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        created = client.create_experiment(name, artifact_location=location, tags=_experiment_tags())
        return client.get_experiment(created)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    place = urlsplit(experiment.artifact_location)
    if location and place.scheme == "file" and not Path(unquote(place.path)).parent.is_dir():
        raise TrackingError(
            f"experiment {name} in {redact(uri)} keeps its files in {experiment.artifact_location}, which "
            f"does not exist, expected {location}: if the project was moved, move it back, or move the "
            "database away and run: python -m tasks track"
        )
    return experiment


def _experiment_tags() -> dict[str, str]:
    """The kind of the experiment, and the state of its view of models.

    MLflow documents no format of a shared view; this is what its pages (3.17) store for one.
    """
    columns = [f"metrics.`{key}`" for key in (*SCORES, *METRICS_FILE, "fluency")]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,  # else by the alphabet
        "groupBy": {
            "aggregateFunction": "average",  # over seeds and folds
            "groupByKeys": [{"mode": "tag", "groupByData": "efface.method"}],
        },
        **{key: {} for key in ("columnWidths", "groupsExpanded", "runsExpanded", "runsVisibilityMap")},
        **{key: [] for key in ("runsHidden", "runsPinned")},
        "runsHiddenMode": "FIRST_20_RUNS",
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(state),
    }


def pipeline_payload(params: Params, root: Path) -> RunPayload:
    """Read a finished result: one run for the pipeline, and nested in it one per model.

    Raises:
        ArtifactError: if a part of it is missing or damaged.
    """
    report, project = root / "report", project_of(root)
    if not (report / "index.html").is_file():
        raise ArtifactError(f"{report / 'index.html'} does not exist; make it with: dvc repro")
    numbers = read_json(report / "scores.json")
    side_effects, lines = numbers.get("side_effects", {}), numbers.get("models", {})
    splits, records = read_splits(root), {record.label: record for record in read_records(root)}
    benchmark, locked = str(splits["benchmark"]), locked_digests(project)
    data = (
        locked.get(f"{root.absolute().name}/prepared/samples.parquet", "")[:36]
        or digest(root / "prepared")[:36]
    )
    facts = ("benchmark", "forget_fraction", "seed", "fold")
    tags = _shared_tags(list(records.values()), project)
    tags |= {f"efface.{key}": str(splits[key]) for key in facts if splits.get(key) is not None}
    digests = {model: str(read_scores(root, model)[1].get("digest")) for model in params.models}
    children = []
    for model, folder in params.models.items():
        child, outputs = model_payload(root, model, records), (f"models/{folder}", f"scores/{model}.parquet")
        hashes = {f"dvc/{path}": md5 for path, md5 in locked.items() if path.endswith(outputs)}
        child = replace(
            child,
            metrics={
                **child.metrics,
                **metrics_of(side_effects.get(model, {})),
                **_robustness(lines.get(model, {})),
                **_report_scores(lines.get(model, {})),
            },
            tags={**tags, **hashes, **child.tags, "efface.method": model},
            datasets=_datasets(model, benchmark, root, data),
        )
        start = params.unlearn.methods[model].start if model in params.unlearn.methods else "vanilla"
        parent = {"base": None, "vanilla": "base", "retrained": "base"}.get(model, start.split("/")[-1])
        card = report / "cards" / f"{model}.md"
        weights = ModelPayload(
            name=registered_name(benchmark, params.base.source),
            folder=root / "models" / folder,
            digest=digests[model],
            parent=None if parent is None else digests.get(parent),
            alias=alias_of(model),
            description=_text(card, default=_DESCRIPTIONS.get(model, "")),
            tags=child.tags
            | {
                "efface.model": model,
                "efface.base": params.base.source,
                "efface.benchmark": benchmark,
                ROLE: child.role,
            },
        )
        children.append(replace(child, model=weights))

    shared = [record for record in records.values() if not record.name]
    values = {key: str(splits[key]) for key in ("benchmark", "forget_fraction", "seed")}
    metrics = {f"cost/{record.label}/seconds": float(record.content["seconds"]) for record in shared}
    for record in shared:
        values |= _params(record)
    names = ("saliency", "importance")
    masks = {name: mask_metadata(root / "masks" / f"{name}.safetensors") for name in names}
    if density := (masks["saliency"] or {}).get("density"):
        metrics["saliency/density"] = float(density["total"])
        metrics |= {f"saliency/density/{group}": float(share) for group, share in density["groups"].items()}
    texts = {f"masks/{name}.json": json.dumps(about, indent=2) for name, about in masks.items() if about}
    for name in ("dvc.lock", "params.yaml"):
        if (project / name).is_file():
            texts[f"project/{name}"] = (project / name).read_text(encoding="utf-8")
    identity = _combined("pipeline", data, *(child.digest for child in children))
    inputs = tuple(f"{root.absolute().name}/{folder}" for folder in ("prepared", "masks", "benchmarks"))
    return RunPayload(
        name=f"{benchmark}-{identity[:8]}",
        role="pipeline",
        digest=identity,
        started=min(child.started for child in children),
        ended=max(child.ended for child in children),
        params=values,
        metrics=metrics,
        tags=tags | {f"dvc/{path}": md5 for path, md5 in locked.items() if path.startswith(inputs)},
        texts=texts,
        datasets=_datasets("vanilla", benchmark, root, data),
        children=children,
        report=report,
        description=_text(report / "summary.md"),
    )


def _robustness(line: Mapping[str, Any]) -> dict[str, float]:
    """How far a model is above retrained after the worst attack, with its interval, as far as known."""
    gap, interval = line.get("attack_gap"), line.get("attack_interval")
    metrics = {} if gap is None else {"attack/worst_gap": float(gap)}
    return metrics | dict(
        zip(("attack/worst_gap_low", "attack/worst_gap_high"), map(float, interval or ()), strict=False)
    )


def _report_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """The score by each goal as ``score/<goal>``, with its interval, its parts, and that by exact match."""
    metrics = {}
    for goal, score in line.get("score", {}).items():
        metrics[f"score/{goal}"] = score["value"]
        metrics |= {f"score/{goal}_{key}": score[key] for key in ("low", "high", *PARTS)}
    for goal, score in line.get("score_exact_match", {}).items():
        metrics[f"score/{goal}_exact_match"] = score["value"]
    return {key: round(float(value), DIGITS) for key, value in metrics.items() if value is not None}


def model_payload(root: Path, model: str, records: Mapping[str, Record]) -> RunPayload:
    """The run of one model: how it was trained or pruned, and its scores."""
    scores, summary = read_scores(root, model)
    trainings = (record for record in records.values() if record.stage in TRAINING_STAGES)
    training = next((record for record in trainings if (record.name or record.stage) == model), None)
    evaluation = records.get(f"evaluate@{model}")
    sources = [root / "scores" / f"{model}{suffix}" for suffix in (".parquet", ".json")]
    sources += [root / "runs" / f"{record.label}.json" for record in (training, evaluation) if record]
    sources += [path for path in [root / "attacks" / f"{model}.json"] if path.is_file()]
    curve = root / "report" / "plots" / f"training_{model}.svg"
    metrics = scores_of(summary) | model_metrics(scores)
    benchmarks = root / "lmms_eval" / f"{model}.json"
    if benchmarks.is_file() and (about := read_json(benchmarks))["digest"] == summary.get("digest"):
        sources.append(benchmarks)
        metrics |= {
            f"lmms_eval/{task}/{metric}": value
            for task, values in about["results"].items()
            for metric, value in values.items()
        }
    history: list[tuple[int, dict[str, float]]] = []
    tags, started, ended = {}, 0, 0  # without a record: always the same time, so that a run is logged once
    if record := training or evaluation:
        moment = datetime.strptime(record.content["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        started = int(moment.timestamp() * 1000)
        ended = started + int(1000 * float(record.content["seconds"]))
        tags["device"] = str(record.content.get("device", "not recorded"))
    if training is not None:
        content = training.content
        costs = [key for key in ("seconds", "peak_memory_mib") if content.get(key) is not None]
        metrics |= {f"cost/{key}": float(content[key]) for key in costs}
        pruned = content.get("summary", {}).get("pruned", {})
        metrics |= {f"pruned/{tower}": float(sum(layers.values())) for tower, layers in pruned.items()}
        for row in content.get("history", ()):
            values = {key: float(v) for key, v in row.items() if key != "step" and v is not None}
            history.append((int(row["step"]), values))
        if status := content.get("summary", {}).get("status"):
            tags["efface.status"] = str(status)
    return RunPayload(
        name=model,
        role="reference" if model in REFERENCE_MODELS else "method",
        digest=_combined(model, *(digest(source) for source in sources)),
        started=started,
        ended=ended,
        params=(_params(training) if training else {}) | (_params(evaluation) if evaluation else {}),
        metrics=metrics,
        history=history,
        tags=tags,
        files=[(path, path.parent.name) for path in (*sources, curve) if path.is_file()],
    )


def study_payload(cells: Sequence[Finished], folder: Path) -> RunPayload:
    """Read a finished study: one run for the comparison, and nested in it one per model of every cell.

    Args:
        cells: the finished cells, at least one.
        folder: of the comparison: `index.html`, `summary.md`, `results.json`.

    Raises:
        ArtifactError: if a file of a cell or of the comparison is missing or damaged.
    """
    results = read_json(folder / "results.json")
    numbers = {
        (*outcome["fold"], outcome["setting"], outcome["model"]): outcome["numbers"]
        for outcome in results["outcomes"]
    }
    children = []
    for cell in cells:
        records = {record.label: record for record in read_records(cell.folder)}
        for model in cell.models:
            child, name = model_payload(cell.folder, model, records), f"{cell.title}, {model}"
            place = {"seed": str(cell.seed), "fold": str(cell.fold)}
            place |= {} if cell.setting is None else {"setting": str(cell.setting)}
            outcome = numbers.get(
                (cell.seed, cell.fold, None if model in REFERENCE_MODELS else cell.setting, model), {}
            )
            scores = {
                f"study/{key}": round(float(outcome[key]), DIGITS)
                for key in ("score", *PARTS)
                if key in outcome
            }
            children.append(
                replace(
                    child,
                    name=name,
                    role="cell",
                    digest=_combined(name, child.digest),
                    metrics={**child.metrics, **scores},
                    params={
                        **child.params,
                        **{f"study.{k}": v for k, v in place.items()},
                        "study.model": model,
                    },
                    tags={
                        **child.tags,
                        "study.folder": str(cell.folder),
                        "efface.method": model,
                        **{f"efface.{key}": value for key, value in place.items()},
                    },
                )
            )
    identity = _combined("study", *(child.digest for child in children))
    seeds = sorted({cell.seed for cell in cells if cell.setting is None})
    return RunPayload(
        name=f"study-{identity[:8]}",
        role="study",
        digest=identity,
        started=min(child.started for child in children),
        ended=max(child.ended for child in children),
        params={"study.goal": str(results["goal"]), "study.seeds": ", ".join(map(str, seeds))},
        metrics={  # MLflow allows no comma in a name
            f"{model}/{name.replace(', ', ' ')}": float(number["mean"])
            for model, line in results["lines"].items()
            for name, number in line["numbers"].items()
        },
        children=children,
        report=folder,
        description=(folder / "summary.md").read_text(encoding="utf-8"),
    )


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Every metric of a score summary, as ``set/modality/metric``."""
    return {
        f"{set_name}/{modality}/{metric}": float(cell["value"])
        for set_name, modalities in summary["metrics"].items()
        for modality, metrics in modalities.items()
        for metric, cell in metrics.items()
    }


def _text(path: Path, default: str = "") -> str:
    return without_metadata(path.read_text(encoding="utf-8")) if path.is_file() else default


def _combined(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _params(record: Record) -> dict[str, str]:
    """A record's parameters, flat, with the stage's name in front: ``unlearn.learning_rate``."""
    flat: dict[str, str] = {}
    rest: list[tuple[str, Any]] = [(record.stage, record.content.get("params") or {})]
    while rest:
        key, value = rest.pop()
        if isinstance(value, dict):
            rest += [(f"{key}.{name}", item) for name, item in value.items()]
        else:
            flat[key] = str(value)
    seed = record.content.get("seed")
    return flat if seed is None else flat | {f"{record.stage}.seed": str(seed)}


def _datasets(model: str, benchmark: str, root: Path, data: str) -> list[DatasetInput]:
    """What a model was trained on, unlearned and evaluated with, by path and hash; no data is read.

    Args:
        model: its name.
        benchmark: its benchmark.
        root: the data folder.
        data: digest of the table of samples, at most 36 characters.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    contexts = {
        "base": {"real": "training"},
        "vanilla": {"forget": "training", "retain": "training"},
        "retrained": {"retain": "training"},
    }.get(model, {"forget": "forget", "retain": "retain"})
    source = json.dumps({"uri": str((root / "prepared").absolute())})
    return [
        DatasetInput(
            Dataset(f"{benchmark}-{name}", data, source_type="local", source=source),
            [InputTag("mlflow.data.context", context)],
        )
        for name, context in (contexts | {"evaluation": "evaluation"}).items()
    ]


def _shared_tags(records: Sequence[Record], project: Path) -> dict[str, str]:
    contents, lock = [record.content for record in records], project / "dvc.lock"
    tags = {
        "git.commit": ", ".join(sorted({str(c["git_commit"]) for c in contents if c.get("git_commit")})),
        "device": ", ".join(sorted({str(c["device"]) for c in contents if c.get("device")})),
        "prefect.flow_run_id": os.environ.get("EFFACE_FLOW_RUN_ID", ""),
        "dvc.lock": digest(lock) if lock.is_file() else "",
    }
    return {key: value for key, value in tags.items() if value}
