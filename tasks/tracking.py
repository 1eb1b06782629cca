"""Send finished results to MLflow; what was sent before is not sent again.

Nothing is tracked while a stage computes: results are on disk first, and this reads them from there. So a
server that is down costs no result; a later ``python -m tasks track`` sends what is missing. A run carries
the digest of its files and, as its very last tag, ``efface.complete``; one without it is taken up again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from efface.errors import ArtifactError, EffaceError
from tasks.artifacts import digest, remove_stale_partials
from tasks.outbox import Dataset, ModelFolder, Result, Sending, collect
from tasks.params import Params
from tasks.results import project_of

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

ALIAS = "candidate"
"""Always the model of the result on disk; promoting one further is somebody's decision."""
LARGEST_UPLOAD = 2 << 30
"""Bytes; a larger model stays with DVC and is only named in the run's tags."""
COMPLETE = "efface.complete"
DIGEST = "efface.digest"
MODEL = "efface.model_digest"
REPORT = "efface.report_digest"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_PROBE_SECONDS = 3.0
_LOCK_SECONDS = 60.0
_BATCH = 1000
_LONGEST_TAG = 5000


class TrackingError(EffaceError):
    """The tracking server or database did not take the results; they are still on disk."""


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
    send(collect(params, root), project_of(root), quiet_if_unreachable=quiet_if_unreachable)


def send(result: Result, project: Path, *, quiet_if_unreachable: bool = False) -> None:
    """Send a result of the pipeline, or of a study: a parent run with its children.

    Args:
        result: what to send.
        project: folder of the database, where no server is named.
        quiet_if_unreachable: only say so when MLflow does not take it; else raise.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses, unless told to be quiet.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"
    try:
        with _alone(project / "mlartifacts" / ".lock"), _failures_in_words(uri):
            sent = _Sender(uri, project).send(result)
    except TrackingError as error:
        if not quiet_if_unreachable:
            raise
        typer.echo(f"track: {error}")
        return
    shown = _without_password(uri)
    if sent:
        typer.echo(f"track: sent {', '.join(sent)} to {shown} (experiment {result.experiment})")
    else:
        typer.echo(f"track: nothing new; {result.parent.name} is complete at {shown}")


@contextlib.contextmanager
def _failures_in_words(uri: str) -> Iterator[None]:
    """Turn whatever a store can throw into one line that says how to go on."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        _probe(uri)
        from mlflow.exceptions import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError
    except OSError as error:
        raise _unsent(uri, error) from error
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise _unsent(uri, error) from error


def _unsent(uri: str, error: Exception) -> TrackingError:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 160 else reason[:157] + "..."
    return TrackingError(
        f"MLflow at {_without_password(uri)} did not take the results ({type(error).__name__}: "
        f"{_without_password(reason)}); nothing is lost, send them later with: python -m tasks track"
    )


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _probe(uri: str) -> None:
    """Fail within seconds where MLflow would wait for minutes: a host where nobody answers."""
    parts = urlsplit(uri)
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
    port = parts.port or ports.get(parts.scheme.partition("+")[0])
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a kernel lock, gone with its process: two senders would each make the same runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _LOCK_SECONDS
    with open(path, "w", encoding="utf-8") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TrackingError(
                        f"another process has been tracking for {_LOCK_SECONDS:.0f} seconds (lock {path}); "
                        "run again when it is done: python -m tasks track"
                    ) from None
                time.sleep(0.1)
        yield


def _create_database(path: Path) -> None:
    """Make the SQLite file whole or not at all: a schema cut short by a kill cannot be repaired."""
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial tables..."
    remove_stale_partials(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    MlflowClient(f"sqlite:///{partial}", f"sqlite:///{partial}").search_experiments(max_results=1)
    os.replace(partial, path)


@dataclass
class _Sender:
    """Sends one result; each step first looks whether it was done before."""

    uri: str
    project: Path

    def send(self, result: Result) -> list[str]:
        """Names of what was sent now; empty if all was there."""
        from mlflow.tracking import MlflowClient

        if (
            self.uri == f"sqlite:///{self.project / 'mlflow.db'}"
            and not (self.project / "mlflow.db").exists()
        ):
            _create_database(self.project / "mlflow.db")
        self.client: MlflowClient = MlflowClient(self.uri, self.uri)
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
        for child in result.children:
            moved = child.model is not None and self._point_alias(child.model)
            if child.model is not None and moved and child.name not in children:
                sent.append(f"{child.model.registered_name}@{ALIAS}")
        return sent

    def _experiment(self, name: str) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        # A server knows where its files go; beside a bare database they go into the project.
        location = None if self.uri.startswith("http") else (self.project / "mlartifacts" / name).as_uri()
        if found is None:
            return self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        if location and found.artifact_location != location and not _writable(found.artifact_location):
            raise TrackingError(
                f"experiment {name} in {_without_password(self.uri)} keeps its files in "
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
        metrics += [Metric(key, value, sending.ended, 0) for key, value in sending.metrics.items()]
        params = [Param(key, value) for key, value in sending.params.items()]
        tags = [RunTag(key, value[:_LONGEST_TAG]) for key, value in sending.tags.items()]
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
            self._register(run_id, child.model)
        self._finish(run_id, child)
        return True

    def _send_report(self, parent: str, result: Result) -> None:
        self.client.log_artifacts(parent, str(result.report), "report")
        self.client.set_tag(parent, "mlflow.note.content", result.description[:_LONGEST_TAG])
        self.client.set_tag(parent, REPORT, result.report_digest)

    def _finish(self, run_id: str, sending: Sending) -> None:
        self.client.set_terminated(run_id, "FINISHED", sending.ended)
        self.client.set_tag(run_id, COMPLETE, "true")

    def _register(self, run_id: str, model: ModelFolder) -> None:
        """Log the model's folder and make it a version, unless these weights are one already."""
        version = self._version(model)
        if version is None:
            size = sum(file.stat().st_size for file in model.path.rglob("*") if file.is_file())
            if size > LARGEST_UPLOAD:
                self.client.set_tag(run_id, "efface.model", f"not uploaded ({size:,} bytes): {model.path}")
                return
            _require_same(model)
            self.client.log_artifacts(run_id, str(model.path), "model")
            source = f"{self.client.get_run(run_id).info.artifact_uri}/model"
            self._registered(model.registered_name)
            made = self.client.create_model_version(
                model.registered_name, source, run_id, tags={MODEL: model.digest}, await_creation_for=0
            )
            version = str(made.version)
        self.client.set_tag(run_id, "efface.model", f"models:/{model.registered_name}/{version}")

    def _registered(self, name: str) -> None:
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)

    def _version(self, model: ModelFolder) -> str | None:
        found = self.client.search_model_versions(f"name = '{model.registered_name}'")
        same = [int(version.version) for version in found if version.tags.get(MODEL) == model.digest]
        return str(max(same)) if same else None

    def _point_alias(self, model: ModelFolder) -> bool:
        """Let the alias name the model on disk; False if it did, or if the model is not registered."""
        version = self._version(model)
        if version is None:
            return False
        aliases: dict[str, Any] = self.client.get_registered_model(model.registered_name).aliases
        if str(aliases.get(ALIAS)) == version:
            return False
        self.client.set_registered_model_alias(model.registered_name, ALIAS, version)
        return True


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


def _require_same(model: ModelFolder) -> None:
    found = digest(model.path)
    if found != model.digest:
        raise ArtifactError(
            f"{model.path} is not the model that was scored (digest {model.digest[:12]} then, "
            f"{found[:12]} now); restore or score it again with: dvc repro"
        )


def _writable(location: str) -> bool:
    """Whether files can go to a local folder; other places are for their own service to judge."""
    if not location.startswith("file:"):
        return True
    path = Path(urlsplit(location).path)
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return path.is_dir() and os.access(existing, os.W_OK)
