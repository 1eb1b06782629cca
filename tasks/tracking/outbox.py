"""What there is to track: one result of the pipeline as plain values, read from disk.

A result is a parent run and one child run per model. Each has a digest of the files it comes from, which is
how a later call recognises what was sent before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from efface.errors import ArtifactError
from tasks.config import YARDSTICKS, Params
from tasks.runtime.artifacts import digest
from tasks.runtime.results import (
    Record,
    locked_digests,
    mask_metadata,
    project_of,
    read_records,
    read_scores,
    read_splits,
)
from tasks.tracking.registry import Candidate, registered_name

TRAINING_STAGES = ("base", "vanilla", "retrained", "unlearn", "prune")
MASKS = ("saliency", "importance")


@dataclass(frozen=True)
class Dataset:
    """Data a run read: a name, what for, where it lies, and its digest (at most 36 characters)."""

    name: str
    context: str
    path: Path
    digest: str


@dataclass(frozen=True)
class Sending:
    """One run to track."""

    name: str
    role: str
    digest: str
    started: int
    """Milliseconds since 1970."""
    ended: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    """Step and its values."""
    usage: Sequence[tuple[int, Mapping[str, float]]] = ()
    """Milliseconds after the start, and what was used of the machine then."""
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[tuple[Path, str]] = ()
    """File and the folder among the run's artifacts it goes to."""
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON artifacts by path."""
    datasets: Sequence[Dataset] = ()
    model: Candidate | None = None


@dataclass(frozen=True)
class Result:
    """One result of the pipeline."""

    experiment: str
    parent: Sending
    children: Sequence[Sending]
    report: Path
    """Folder of the report; sent with the parent, and again when it alone changed."""
    report_digest: str
    description: str


def collect(params: Params, root: Path) -> Result:
    """Read a finished result under ``root``.

    Raises:
        ArtifactError: if a part of it is missing or damaged.
    """
    report = root / "report"
    if not (report / "index.html").is_file():
        raise ArtifactError(
            f"{report / 'index.html'} does not exist, so there is nothing to track; run: dvc repro"
        )
    splits = read_splits(root)
    benchmark = str(splits["benchmark"])
    records = {record.label: record for record in read_records(root)}
    locked = locked_digests(project_of(root))
    common = _common_tags(list(records.values()), root)
    data = _data_digest(locked, root)
    summaries = {model: read_scores(root, model)[1] for model in params.evaluate.models}
    children = []
    for model, folder in params.evaluate.models.items():
        own = _locked_tags(model, folder, root, locked)
        child = _child(model, summaries[model], root, records, common | own, benchmark, data)
        weights = _weights(model, params, root, summaries, {**child.tags, "efface.benchmark": benchmark})
        children.append(replace(child, model=weights))
    return Result(
        experiment=f"efface-{benchmark}",
        parent=_parent(root, splits, records, children, common, locked, data),
        children=children,
        report=report,
        report_digest=digest(report),
        description=_text(report / "summary.md"),
    )


def _child(
    model: str,
    summary: Mapping[str, Any],
    root: Path,
    records: Mapping[str, Record],
    tags: Mapping[str, str],
    benchmark: str,
    data: str,
) -> Sending:
    """The run of one model: how it was made, and how it scored."""
    made = next(
        (r for r in records.values() if r.stage in TRAINING_STAGES and (r.name or r.stage) == model), None
    )
    scored = records.get(f"evaluate@{model}")
    sources = [root / "scores" / f"{model}{suffix}" for suffix in (".parquet", ".json")]
    sources += [root / "runs" / f"{record.label}.json" for record in (made, scored) if record]
    curve = root / "report" / "plots" / f"training_{model}.svg"
    started, ended = _times(made or scored)
    return Sending(
        name=model,
        role="yardstick" if model in YARDSTICKS else "method",
        digest=_combined(model, *(digest(source) for source in sources)),
        started=started,
        ended=ended,
        params=_params(made) | _params(scored),
        metrics=_score_metrics(summary) | _cost(made) | _pruned(made),
        history=_history(made),
        usage=_usage(made or scored),
        tags={
            **tags,
            **_ending(made),
            "device": str((made or scored or _NONE).content.get("device", "not recorded")),
        },
        files=[
            (source, source.parent.name)
            for source in (*sources, curve)
            if source is not curve or curve.is_file()
        ],
        datasets=_datasets(model, benchmark, root, data),
    )


def _weights(
    model: str,
    params: Params,
    root: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    tags: Mapping[str, str],
) -> Candidate:
    """The model as the registry gets it, with what it was made from."""
    start = params.unlearn.methods[model].start if model in params.unlearn.methods else "vanilla"
    parent = {"base": None, "vanilla": "base", "retrained": "base"}.get(model, start.split("/")[-1])
    card = _text(root / "report" / "cards" / f"{model}.md")
    return Candidate(
        name=registered_name(tags["efface.benchmark"], params.base.source),
        folder=root / "models" / params.evaluate.models[model],
        digest=str(summaries[model].get("digest")),
        role=model if model in YARDSTICKS else "method",
        parent=None if parent is None else str(summaries.get(parent, {}).get("digest", "")) or None,
        description=card or _DESCRIPTIONS.get(model, ""),
        tags={"efface.model": model, "efface.base": params.base.source, **tags},
    )


_DESCRIPTIONS = {
    "base": "Before training on the people of the benchmark.",
    "vanilla": "base, trained on everybody; where unlearning starts.",
    "retrained": "base, trained on everybody but the people to forget; the yardstick.",
}


def _parent(
    root: Path,
    splits: Mapping[str, Any],
    records: Mapping[str, Record],
    children: Sequence[Sending],
    tags: Mapping[str, str],
    locked: Mapping[str, str],
    data: str,
) -> Sending:
    """The run of the whole pipeline: what all models share."""
    shared = [record for record in records.values() if not record.name]
    masks = {name: mask_metadata(root / "masks" / f"{name}.safetensors") for name in MASKS}
    params = {key: str(splits[key]) for key in ("benchmark", "forget_fraction")} | {
        "seed": str(splits["seed"])
    }
    for record in shared:
        params |= _params(record)
    metrics = {f"cost/{record.label}/seconds": float(record.content["seconds"]) for record in shared}
    density = (masks["saliency"] or {}).get("density", {})
    if density:
        metrics["saliency/density"] = float(density["total"])
        metrics |= {f"saliency/density/{group}": float(share) for group, share in density["groups"].items()}
    identity = _combined("pipeline", data, *(child.digest for child in children))
    project = project_of(root)
    entries = {
        f"dvc/{path}": md5
        for path, md5 in locked.items()
        if path.startswith(("data/pre", "data/ma", "data/b"))
    }
    return Sending(
        name=f"{splits['benchmark']}-{identity[:8]}",
        role="pipeline",
        digest=identity,
        started=min(child.started for child in children),
        ended=max(child.ended for child in children),
        params=params,
        metrics=metrics,
        tags={**tags, **entries},
        files=[
            (path, "project") for path in (project / "dvc.lock", project / "params.yaml") if path.is_file()
        ],
        documents={f"masks/{name}.json": about for name, about in masks.items() if about is not None},
        datasets=_datasets("vanilla", str(splits["benchmark"]), root, data),
    )


_NONE = Record("", None, {})


def _combined(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _params(record: Record | None) -> dict[str, str]:
    """A record's section, flat, with the stage's name in front: ``unlearn.learning_rate``."""
    if record is None:
        return {}
    flat = {f"{record.stage}.{key}": str(value) for key, value in _flat(record.content.get("params") or {})}
    seed = record.content.get("seed")
    return flat | ({} if seed is None else {f"{record.stage}.seed": str(seed)})


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]
    return found


def _score_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{set_name}/{modality}/{metric}": float(cell["value"])
        for set_name, modalities in summary["metrics"].items()
        for modality, metrics in modalities.items()
        for metric, cell in metrics.items()
    }


def _cost(record: Record | None) -> dict[str, float]:
    keys = ("seconds", "peak_memory_mib")
    content = {} if record is None else record.content
    return {f"cost/{key}": float(content[key]) for key in keys if content.get(key) is not None}


def _pruned(record: Record | None) -> dict[str, float]:
    towers = {} if record is None else record.content.get("summary", {}).get("pruned", {})
    return {f"pruned/{tower}": float(sum(layers.values())) for tower, layers in towers.items()}


def _ending(record: Record | None) -> dict[str, str]:
    """How training ended: whole, by a stop rule, or by divergence."""
    status = None if record is None else record.content.get("summary", {}).get("status")
    return {} if status is None else {"efface.status": str(status)}


def _history(record: Record | None) -> list[tuple[int, dict[str, float]]]:
    entries = [] if record is None else record.content.get("history", [])
    return [
        (int(entry["step"]), {key: float(v) for key, v in entry.items() if key != "step" and v is not None})
        for entry in entries
    ]


def _usage(record: Record | None) -> list[tuple[int, dict[str, float]]]:
    samples = [] if record is None else record.content.get("usage", [])
    return [
        (int(1000 * sample["at"]), {key: float(value) for key, value in sample.items() if key != "at"})
        for sample in samples
    ]


def _times(record: Record | None) -> tuple[int, int]:
    """Start and end in milliseconds; without a record, one fixed moment, so a second call sends the same."""
    if record is None:
        return 0, 0
    moment = datetime.strptime(record.content["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    started = int(moment.timestamp() * 1000)
    return started, started + int(1000 * float(record.content["seconds"]))


def _datasets(model: str, benchmark: str, root: Path, data: str) -> list[Dataset]:
    """Who was trained on, forgotten and asked about."""
    uses = {
        "base": [("real", "training")],
        "vanilla": [("forget", "training"), ("retain", "training")],
        "retrained": [("retain", "training")],
    }.get(model, [("forget", "forget"), ("retain", "retain")])
    path = (root / "prepared").absolute()
    return [
        Dataset(f"{benchmark}-{name}", context, path, data)
        for name, context in [*uses, ("evaluation", "evaluation")]
    ]


def _data_digest(locked: Mapping[str, str], root: Path) -> str:
    """DVC's hash of the prepared data, or our own without a lock file."""
    return locked.get(_relative(root, "prepared"), "")[:36] or digest(root / "prepared")[:36]


def _locked_tags(model: str, folder: str, root: Path, locked: Mapping[str, str]) -> dict[str, str]:
    paths = (_relative(root, f"models/{folder}"), _relative(root, f"scores/{model}.parquet"))
    return {f"dvc/{path}": locked[path] for path in paths if path in locked}


def _relative(root: Path, path: str) -> str:
    return f"{root.absolute().name}/{path}"


def _common_tags(records: Sequence[Record], root: Path) -> dict[str, str]:
    commits = sorted({str(r.content["git_commit"]) for r in records if r.content.get("git_commit")})
    lock = project_of(root) / "dvc.lock"
    tags = {"git.commit": ", ".join(commits), "prefect.flow_run_id": os.environ.get("EFFACE_FLOW_RUN_ID", "")}
    tags["dvc.lock"] = digest(lock) if lock.is_file() else ""
    tags["device"] = ", ".join(sorted({str(r.content["device"]) for r in records if r.content.get("device")}))
    return {key: value for key, value in tags.items() if value}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
