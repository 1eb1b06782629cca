"""The registered model in MLflow: its versions, what each forgot, and which of them is in production.

A version's tags hold all that is needed to go on from it. Versions are made whole and named by an alias only
afterwards, so a run that is cut short leaves the production model as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError
from tasks.tracking.client import create_database, redact, tracking_uri
from tasks.tracking.registry import LARGEST_UPLOAD

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PRODUCTION, CANDIDATE = "production", "candidate"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_DIGEST, _FOLDER, _REQUESTS = "efface.model_digest", "efface.folder", "efface.requests"
_START, _RUN = "efface.start_version", "efface.run"


class RegistryError(EffaceError):
    """MLflow did not answer, or does not hold what it should."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: int
    digest: str
    """SHA-256 of its folder."""
    folder: str
    """Where the folder was when it was registered, in the project."""
    run: str
    """Folder under .requests of the run that made it; empty for the vanilla model."""
    requests: tuple[str, ...] = ()
    """What it forgot beyond the version it was made from."""
    start: int | None = None
    """The version it was made from."""


@dataclass(frozen=True)
class Logged:
    """What goes with a version into its MLflow run."""

    description: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Sequence[Path]


class Registry:
    """One registered model.

    Args:
        project: the project's folder; its mlflow.db is used unless MLFLOW_TRACKING_URI names another place.
        name: of the registered model.
        experiment: where the runs of its versions are.
    """

    def __init__(self, project: Path, name: str, experiment: str) -> None:
        self.name = name
        self._project, self._experiment = project.absolute(), experiment
        self._own = f"sqlite:///{self._project / 'mlflow.db'}"
        self._uri = tracking_uri(self._project)
        self._made: MlflowClient | None = None

    @contextlib.contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """The client; what goes wrong with it becomes one line that says how to go on."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            from mlflow.exceptions import MlflowException
            from requests import RequestException
            from sqlalchemy.exc import SQLAlchemyError
        except OSError as error:
            raise self._unreachable(error) from error
        try:
            if self._made is None:
                from mlflow.tracking import MlflowClient

                if self._uri == self._own:
                    create_database(self._project / "mlflow.db")
                self._made = MlflowClient(self._uri, self._uri)
            yield self._made
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> RegistryError:
        reason = " ".join(redact(str(error)).split())[:160]
        return RegistryError(
            f"MLflow at {redact(self._uri)} does not answer ({type(error).__name__}: {reason}); "
            "every request is kept and the production model is as it was; start MLflow, or set "
            "MLFLOW_TRACKING_URI, and run again"
        )

    def versions(self) -> dict[int, Version]:
        """The versions that requests are concerned with, by number: others' have no such tags."""
        found = [_version(each) for each in self._all() if _RUN in each.tags]
        return {version.number: version for version in sorted(found, key=lambda each: each.number)}

    def _all(self) -> list[Any]:
        with self._client() as client:
            return list(client.search_model_versions(f"name = '{self.name}'", max_results=10_000))

    def pointed(self, alias: str) -> int | None:
        """Number of the version an alias names; None if it names none."""
        with self._client() as client:
            if not client.search_registered_models(f"name = '{self.name}'"):
                return None
            number = client.get_registered_model(self.name).aliases.get(alias)
        return None if number is None else int(number)

    def lineage(self, number: int | None) -> dict[int, Version]:
        """A version and those it was made from, the newest first; nothing for None.

        Raises:
            RegistryError: if one of them is not there.
        """
        versions, found = self.versions(), dict[int, Version]()
        while number is not None and number not in found:
            if number not in versions:
                raise RegistryError(
                    f"version {number} of {self.name} is in production or others were made from it, but it "
                    "is not there or was not made by requests; let the alias production name one that "
                    "was"
                )
            found[number] = versions[number]
            number = versions[number].start
        return found

    def point(self, alias: str, number: int) -> None:
        """Let an alias name a version."""
        with self._client() as client:
            client.set_registered_model_alias(self.name, alias, str(number))

    def unpoint(self, alias: str) -> None:
        """Take an alias away; no matter if it is not there."""
        if self.pointed(alias) is not None:
            with self._client() as client:
                client.delete_registered_model_alias(self.name, alias)

    def register(self, version: Version, logged: Logged) -> Version:
        """Make a version, unless the same run has made it before, or these weights are one already.

        Args:
            version: with any number.
            logged: what goes with it.

        Returns:
            The version with its number.
        """
        tags = {
            **logged.tags,
            _DIGEST: version.digest,
            _FOLDER: version.folder,
            _REQUESTS: ",".join(version.requests),
            _START: "" if version.start is None else str(version.start),
            _RUN: version.run,
        }
        for found in self._all():
            if found.tags.get(_DIGEST) == version.digest and found.tags.get(_RUN, version.run) == version.run:
                return self._tagged(found, tags)
        with self._client() as client:
            run_id = self._run(client, version, tags)
            for files, log in ((logged.params, client.log_param), (logged.metrics, client.log_metric)):
                for key, value in files.items():
                    log(run_id, key, value)
            for path in logged.files:
                client.log_artifact(run_id, str(path))
            self._upload(client, run_id, self._project / version.folder)
            if not client.search_registered_models(f"name = '{self.name}'"):
                client.create_registered_model(self.name)
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            made = client.create_model_version(
                self.name,
                source,
                run_id,
                tags=tags,
                description=logged.description,
                await_creation_for=0,
            )
            client.set_terminated(run_id, "FINISHED")
        return _version(made)

    def _tagged(self, found: Any, tags: Mapping[str, str]) -> Version:
        """A version that was registered without them gets these tags."""
        with self._client() as client:
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    client.set_model_version_tag(self.name, str(found.version), key, value)
            return _version(client.get_model_version(self.name, str(found.version)))

    def _run(self, client: MlflowClient, version: Version, tags: Mapping[str, str]) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            # A server knows where its files go; beside a bare database they go into the project.
            place = self._project / "mlartifacts" / self._experiment
            where = None if self._uri.startswith("http") else place.as_uri()
            experiment = client.create_experiment(self._experiment, artifact_location=where)
        else:
            experiment = found.experiment_id
        same = f"tags.`{_RUN}` = '{version.run}' and tags.`{_DIGEST}` = '{version.digest}'"
        runs = client.search_runs([experiment], same, max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        name = version.run or "vanilla"
        made = client.create_run(
            experiment, run_name=name, tags={**tags, "mlflow.source.name": "flows.requests"}
        )
        return str(made.info.run_id)

    def _upload(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LARGEST_UPLOAD:
            where = {"folder": folder.as_posix(), "bytes": size, "kept_by": "DVC"}
            client.log_dict(run_id, where, "model/where.json")
        else:
            client.log_artifacts(run_id, str(folder), "model")

    def fetch(self, version: Version, folder: Path) -> Path:
        """Download a version's files into a folder that is not there yet; returns where in it they are."""
        from tasks.runtime.artifacts import writing

        with self._client() as client, writing(folder) as partial:
            from mlflow.artifacts import download_artifacts

            uri = client.get_model_version_download_uri(self.name, str(version.number))
            partial.mkdir()
            got = download_artifacts(artifact_uri=uri, dst_path=str(partial), tracking_uri=self._uri)
            return folder / Path(got).relative_to(partial)


def _version(found: Any) -> Version:
    tags = found.tags
    requests = tags.get(_REQUESTS, "")
    return Version(
        number=int(found.version),
        digest=tags[_DIGEST],
        folder=tags.get(_FOLDER, ""),
        run=tags.get(_RUN, ""),
        requests=tuple(requests.split(",")) if requests else (),
        start=int(tags[_START]) if tags.get(_START) else None,
    )
