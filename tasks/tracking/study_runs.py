"""A study as MLflow runs: one parent with the comparison, one child per model of every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.config import YARDSTICKS
from tasks.runtime.artifacts import digest, read_json
from tasks.runtime.results import Record, read_records, read_scores, read_splits
from tasks.tracking.outbox import Result, Sending

Cells = Mapping[str, Mapping[str, Any]]
"""Name of a finished cell to `seed, fraction, method (None: the yardsticks), variant, folder`."""
MAKING = ("base", "vanilla", "retrained", "unlearn", "prune")
SHARED = ("seed", "fraction", "variant")


def study_result(cells: Cells, folder: Path) -> Result:
    """What there is to track of a finished study.

    Args:
        cells: the finished cells, at least one.
        folder: where the comparison was written: `index.html`, `summary.md`, `results.json`.

    Raises:
        ArtifactError: if a file of a cell or of the comparison is missing or damaged.
    """
    children = [child for name, cell in cells.items() for child in _children(name, cell)]
    results = read_json(folder / "results.json")
    benchmark = read_splits(Path(next(iter(cells.values()))["folder"]) / "data")["benchmark"]
    identity = _combined("study", *(child.digest for child in children))
    seeds = sorted({cell["seed"] for cell in cells.values()})
    parent = Sending(
        name=f"study-{identity[:8]}",
        role="study",
        digest=identity,
        started=min(child.started for child in children),
        ended=max(child.ended for child in children),
        params={"study.goal": str(results["goal"]), "study.seeds": ", ".join(map(str, seeds))},
        metrics=dict(_means(results)),
    )
    return Result(
        experiment=f"efface-{benchmark}",
        parent=parent,
        children=children,
        report=folder,
        report_digest=digest(folder),
        description=(folder / "summary.md").read_text(encoding="utf-8"),
    )


def _children(name: str, cell: Mapping[str, Any]) -> Iterator[Sending]:
    """One run per model: the yardsticks' of a world, or the method's."""
    root = Path(cell["folder"]) / "data"
    records = {record.label: record for record in read_records(root)}
    for model in YARDSTICKS if cell["method"] is None else (cell["method"],):
        _, summary = read_scores(root, model)
        made = next((r for r in records.values() if r.stage in MAKING and (r.name or r.stage) == model), None)
        started, ended = _times(made or records[f"evaluate@{model}"])
        yield Sending(
            name=name if cell["method"] else f"{name}, {model}",
            role="cell",
            digest=_combined(name, model, digest(root / "scores" / f"{model}.parquet")),
            started=started,
            ended=ended,
            params={f"study.{key}": str(cell[key]) for key in SHARED} | {"study.model": model},
            metrics={
                f"{kind}/{modality}/{metric}": float(value["value"])
                for kind, modalities in summary["metrics"].items()
                for modality, metrics in modalities.items()
                for metric, value in metrics.items()
            },
            tags={"study.folder": str(cell["folder"])},
        )


def _means(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every mean of the comparison, `<fraction>/<model>/<number>`, in the letters that MLflow allows."""
    for line in results["lines"]:
        for number, found in line["numbers"].items():
            yield f"{line['fraction']:g}/{line['model']}/{number.replace(', ', ' ')}", float(found["mean"])


def _times(record: Record) -> tuple[int, int]:
    moment = datetime.strptime(record.content["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    started = int(moment.timestamp() * 1000)
    return started, started + int(1000 * float(record.content["seconds"]))


def _combined(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
