"""Send finished results to MLflow; what was sent before is not sent again.

Nothing is tracked while a stage computes: results are on disk first, and this reads them from there. So a
server that is down costs no result; a later ``python -m tasks track`` sends what is missing. A run carries
the digest of its files and, as its very last tag, ``efface.complete``; one without it is taken up again.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from tasks.config import Params
from tasks.runtime.artifacts import write_json
from tasks.runtime.results import project_of
from tasks.tracking.addresses import shown
from tasks.tracking.outbox import Dataset, Result, Sending, collect
from tasks.tracking.registry import Candidate, Registry, alias_of
from tasks.tracking.store import TrackingError, address_of, connected

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

RECEIPT = Path(".efface/mlflow.json")
"""Where in MLflow the result on disk is; written when it is there as a whole."""
COMPLETE = "efface.complete"
DIGEST = "efface.digest"
REPORT = "efface.report_digest"
_BATCH = 1000
_LONGEST_TAG = 5000


def run(params: Params, root: Path = Path("data"), quiet_if_unreachable: bool = False) -> None:
    """Track the result under ``root``.

    Args:
        params: says which models belong to the result.
        root: the data folder.
        quiet_if_unreachable: only say so when MLflow does not take it, as a pipeline wants it; else raise.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses, unless told to be quiet.
        ArtifactError: if the result on disk is incomplete or damaged.
    """
    project = project_of(root)
    receipt = project / RECEIPT
    receipt.unlink(missing_ok=True)
    place = send(collect(params, root), project, quiet_if_unreachable=quiet_if_unreachable)
    if place is not None:
        write_json(receipt, place)


def send(result: Result, project: Path, *, quiet_if_unreachable: bool = False) -> dict[str, str] | None:
    """Send a result of the pipeline, or of a study: a parent run with its children.

    Args:
        result: what to send.
        project: folder of the database, where no server is named.
        quiet_if_unreachable: only say so when MLflow does not take it; else raise.

    Returns:
        Where it is: `experiment, run, at`; None if it was not taken.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses, unless told to be quiet.
    """
    place = shown(address_of(project))
    try:
        with connected(project) as client:
            sender = _Sender(client, project)
            sent = sender.send(result)
    except TrackingError as error:
        if not quiet_if_unreachable:
            raise
        typer.echo(f"track: {error}")
        return None
    if sent:
        typer.echo(f"track: sent {', '.join(sent)} to {place} (experiment {result.experiment})")
    else:
        typer.echo(f"track: nothing new; {result.parent.name} is complete at {place}")
    return {"experiment": sender.experiment.experiment_id, "run": sender.parent, "at": place}


@dataclass
class _Sender:
    """Sends one result; each step first looks whether it was done before."""

    client: MlflowClient
    project: Path

    def send(self, result: Result) -> list[str]:
        """Names of what was sent now; empty if all was there."""
        self.registry = Registry(self.client)
        self.experiment = self._experiment(result.experiment)
        parent, complete = self._find(result.parent, None)
        sent = []
        children: list[str] = []
        if parent is None or not complete:
            parent = self._fill(parent, result.parent, None)
            children = [child.name for child in result.children if self._send_child(child, parent)]
            sent.append(f"{result.parent.name} with {len(children)} of {len(result.children)} models")
        if self.client.get_run(parent).data.tags.get(REPORT) != result.report_digest:
            self._send_report(parent, result)
            sent.append("the report")
        if not complete:
            self._finish(parent, result.parent)
        moved = []
        for child in result.children:
            if child.model is not None and self._point_alias(child.name, child.model):
                moved.append(f"{child.model.name}@{alias_of(child.name)}")
        self.parent = parent
        return sent + ([] if children else moved)

    def _experiment(self, name: str) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        # A server knows where its files go; beside a bare database they go into the project.
        uri = address_of(self.project)
        location = None if uri.startswith("http") else (self.project / "mlartifacts" / name).as_uri()
        if found is None:
            return self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        if location and found.artifact_location != location and not _writable(found.artifact_location):
            raise TrackingError(
                f"experiment {name} in {shown(uri)} keeps its files in "
                f"{found.artifact_location}, expected {location}: was the project moved? Move it back, or "
                "move the database away and run: python -m tasks track"
            )
        return found

    def _find(self, sending: Sending, parent: str | None) -> tuple[str | None, bool]:
        """The run of a sending, if there is one, and whether it is complete."""
        where = f"tags.`{DIGEST}` = '{sending.digest}' and tags.`efface.role` = '{sending.role}'"
        if parent is not None:
            where += f" and tags.`mlflow.parentRunId` = '{parent}'"
        found = self.client.search_runs([self.experiment.experiment_id], where, max_results=100)
        whole = [run for run in found if run.data.tags.get(COMPLETE) == "true"]
        chosen = (whole or list(found))[:1]
        return (chosen[0].info.run_id, bool(whole)) if chosen else (None, False)

    def _fill(self, run_id: str | None, sending: Sending, parent: str | None) -> str:
        """Create the run unless it is there, and log everything; repeating it changes nothing."""
        if run_id is None:
            tags = {
                DIGEST: sending.digest,
                "efface.role": sending.role,
                "mlflow.source.name": "python -m tasks",
            }
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            run = self.client.create_run(
                self.experiment.experiment_id, start_time=sending.started, tags=tags, run_name=sending.name
            )
            run_id = run.info.run_id
        self._log_values(run_id, sending)
        self.client.log_inputs(run_id, [_dataset_input(dataset) for dataset in sending.datasets])
        for path, folder in sending.files:
            self.client.log_artifact(run_id, str(path), folder)
        for path, document in sending.documents.items():
            self.client.log_dict(run_id, dict(document), path)
        return str(run_id)

    def _log_values(self, run_id: str, sending: Sending) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # Times come from the record: logged twice, a value is the same value and stays single.
        duration = max(1, sending.ended - sending.started)
        metrics = [
            Metric(f"training/{key}", value, sending.started + duration * index // len(sending.history), step)
            for index, (step, values) in enumerate(sending.history)
            for key, value in values.items()
        ]
        metrics += [  # where MLflow puts its own, so that its pages show them as system metrics
            Metric(f"system/{key}", value, sending.started + after, index)
            for index, (after, values) in enumerate(sending.usage)
            for key, value in values.items()
        ]
        metrics += [Metric(key, value, sending.ended, 0) for key, value in sending.metrics.items()]
        params = [Param(key, shown(value)) for key, value in sending.params.items()]
        tags = [RunTag(key, shown(value)[:_LONGEST_TAG]) for key, value in sending.tags.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(tags), 100):
            self.client.log_batch(run_id, tags=tags[start : start + 100])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _send_child(self, child: Sending, parent: str) -> bool:
        run_id, complete = self._find(child, parent)
        if complete:
            return False
        run_id = self._fill(run_id, child, parent)
        if child.model is not None:
            version = self.registry.register(run_id, child.model)
            self.client.set_tag(run_id, "efface.model", f"models:/{child.model.name}/{version}")
        self._finish(run_id, child)
        return True

    def _send_report(self, parent: str, result: Result) -> None:
        self.client.log_artifacts(parent, str(result.report), "report")
        self.client.set_tag(parent, "mlflow.note.content", shown(result.description)[:_LONGEST_TAG])
        self.client.set_tag(parent, REPORT, result.report_digest)

    def _finish(self, run_id: str, sending: Sending) -> None:
        self.client.set_terminated(run_id, "FINISHED", sending.ended)
        self.client.set_tag(run_id, COMPLETE, "true")

    def _point_alias(self, name: str, model: Candidate) -> bool:
        """Let the model's alias name what is on disk; False if it did."""
        version = self.registry.version(model.name, model.digest)
        return version is not None and self.registry.point(model.name, alias_of(name), version)


def _dataset_input(dataset: Dataset) -> Any:
    """A dataset known by where it lies and its hash; the data itself is not read."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # a folder fits two of its classes
        source = resolve_dataset_source(str(dataset.path))
    about = MetaDataset(source=source, name=dataset.name, digest=dataset.digest).to_dict()
    entity = Entity(**{key: about[key] for key in ("name", "digest", "source_type", "source")})
    return DatasetInput(entity, [InputTag("mlflow.data.context", dataset.context)])


def _writable(location: str) -> bool:
    """Whether files can go to a local folder; other places are for their own service to judge."""
    if not location.startswith("file:"):
        return True
    path = Path(urlsplit(location).path)
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return path.is_dir() and os.access(existing, os.W_OK)
