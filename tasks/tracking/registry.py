"""MLflow's model registry: one registered model per benchmark and base model, one version per set of weights.

A version's tags hold the digest of its weights and its parent version, so equal weights are stored once and
the lineage base -> vanilla -> unlearned can be traced. The pipeline and forget requests share the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ArtifactError
from tasks.runtime.artifacts import digest, writing
from tasks.tracking.client import TrackingError, mlflow_client, redact, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LARGEST_UPLOAD = 2 << 30
"""Bytes. The files of a larger model stay with DVC; its version holds a small file that says where."""
POINTER = "stored-with-dvc.json"
DIGEST = "efface.model_digest"
PARENT = "efface.parent"
STORED = "efface.stored"
FOLDER = "efface.folder"
RUN = "efface.run"
REQUESTS = "efface.requests"
PURGED = "efface.purged"
MODEL = "efface.model"
FLOW_RUN = "efface.flow_run"
TEXT_LIMIT = 5000
"""Characters of a tag or description, which is what MLflow stores."""
_DESCRIPTION = (
    "Models of one base model and one benchmark: base (before training on the people), vanilla (after), "
    "retrained (trained without the people to forget), and what each method made of vanilla. Aliases name "
    f"the newest version of each; the tag {PARENT} names the version that one was made from."
)


@dataclass(frozen=True)
class ModelPayload:
    """Weights to register as a version.

    Attributes:
        name: name of the registered model.
        folder: a Hugging Face folder.
        digest: digest of that folder, as recorded when the model was scored.
        parent: digest of the model that training or pruning started from; None for a base model.
        alias: alias to set to this version; None: no alias.
        description: Markdown, shown on the version's page.
        tags: tags of the version.
    """

    name: str
    folder: Path
    digest: str
    parent: str | None = None
    alias: str | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    number: int
    digest: str
    """SHA-256 of its folder."""
    parent: int | None = None
    """The version it was made from."""
    folder: str = ""
    """Where it was made, relative to the project; empty unless requests use it."""
    run: str | None = None
    """Run under .requests that made it; empty: the vanilla model; None: not a version of requests."""
    requests: tuple[str, ...] = ()
    """Ids of the requests it carries out beyond its parent."""
    flow_run: str = ""
    """Prefect's id of the flow run of requests that made it."""
    base: bool = False
    """Whether it is the base model, which met none of the people."""
    purged: bool = False
    """Whether its files were deleted because it knows people who had to be forgotten."""


def registered_name(benchmark: str, base_source: str) -> str:
    """Name of the registered model: ``efface-avatars-sandbox``, ``efface-mllmu-llava-1.5-7b-hf``."""
    return f"efface-{benchmark}-{re.sub(r'[^A-Za-z0-9._-]+', '-', base_source.rstrip('/').split('/')[-1])}"


def alias_of(model: str) -> str:
    """A model's name as an alias: letters, digits, dashes and underscores, but not `v1` or `latest`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", model)
    return f"model-{name}" if name == "latest" or re.fullmatch(r"v\d+", name) else name


class Registry:
    """Versions and aliases of one registered model. Every method raises TrackingError if MLflow fails.

    Args:
        project: the project folder, which holds mlflow.db unless MLFLOW_TRACKING_URI is set.
        name: name of the registered model, which is created with its first version.
    """

    def __init__(self, project: Path, name: str) -> None:
        self.project, self.name = project.absolute(), name

    def versions(self) -> dict[int, Version]:
        """All versions with a digest, by number."""
        with mlflow_client(self.project) as client:
            rows = client.search_model_versions(f"name = '{self.name}'")
        versions = [_version(row) for row in rows if DIGEST in row.tags]
        return {version.number: version for version in sorted(versions, key=lambda version: version.number)}

    def aliases(self) -> dict[str, int]:
        """Number of the version that each alias names; empty if the model is not registered."""
        with mlflow_client(self.project) as client:
            models = client.search_registered_models(f"name = '{self.name}'")
        return {alias: int(number) for model in models for alias, number in model.aliases.items()}

    def set_alias(self, alias: str, number: int) -> bool:
        """Set an alias to a version; False if it was set already."""
        if self.aliases().get(alias) == number:
            return False
        with mlflow_client(self.project) as client:
            client.set_registered_model_alias(self.name, alias, str(number))
        return True

    def delete_alias(self, alias: str) -> None:
        """Delete an alias, if it exists."""
        if alias in self.aliases():
            with mlflow_client(self.project) as client:
                client.delete_registered_model_alias(self.name, alias)

    def lineage(self, number: int | None) -> dict[int, Version]:
        """A version of requests and its ancestors down to the vanilla model, newest first; empty for None.

        Raises:
            TrackingError: if one of them does not exist or is not a version of requests.
        """
        versions, lineage = self.versions(), dict[int, Version]()
        while number is not None and number not in lineage:
            version = versions.get(number)
            if version is None or version.run is None:
                raise TrackingError(
                    f"version {number} of {self.name} is in production, or is the parent of the version in "
                    f"production, but does not exist or has no tag {RUN}; set the alias production to a "
                    "version that `python -m flows.requests status` lists"
                )
            lineage[number] = version
            number = version.parent if version.run else None
        return lineage

    def register(self, run_id: str, model: ModelPayload) -> tuple[Version, bool]:
        """Store the folder with a run and make it a version, unless these weights are a version already.

        An existing version keeps its tags and gets those it lacks, and the flow run that decides on it is
        this one. Weights that another run of requests (tag `efface.run`) has registered become a new version.

        Returns:
            The version, and whether it is new.

        Raises:
            ArtifactError: if the folder is not what was scored.
        """
        run = model.tags.get(RUN)
        with mlflow_client(self.project) as client:
            rows = client.search_model_versions(f"name = '{self.name}'", order_by=["version_number DESC"])
            same = [row for row in rows if row.tags.get(DIGEST) == model.digest and PURGED not in row.tags]
            for row in same:
                if run is None or row.tags.get(RUN, run) == run:
                    for key in model.tags.keys() - (row.tags.keys() - {FLOW_RUN}):
                        client.set_model_version_tag(self.name, row.version, key, model.tags[key])
                    return _version(client.get_model_version(self.name, row.version)), False
            tags = {**model.tags, DIGEST: model.digest, STORED: _store(client, run_id, model)}
            if model.parent is not None:
                tags[f"{PARENT}_digest"] = model.parent
                parents = [row.version for row in rows if row.tags.get(DIGEST) == model.parent]
                tags |= {PARENT: f"models:/{self.name}/{parents[0]}"} if parents else {}
            if not client.search_registered_models(f"name = '{self.name}'"):
                client.create_registered_model(self.name, description=_DESCRIPTION)
            row = client.create_model_version(
                self.name,
                f"{client.get_run(run_id).info.artifact_uri}/model",
                run_id,
                tags={key: redact(value)[:TEXT_LIMIT] for key, value in tags.items()},
                description=redact(model.description)[:TEXT_LIMIT] or None,
                await_creation_for=0,
            )
        return _version(row), True

    def download(self, number: int, folder: Path) -> Path:
        """Download a version's files into a new folder; returns the folder of the model in it."""
        with mlflow_client(self.project) as client, writing(folder) as partial:
            from mlflow.artifacts import download_artifacts

            partial.mkdir()
            uri = client.get_model_version_download_uri(self.name, str(number))
            path = download_artifacts(
                artifact_uri=uri, dst_path=str(partial), tracking_uri=tracking_uri(self.project)
            )
            return folder / Path(path).relative_to(partial)

    def stored_files(self, experiments: str, *, keep: Collection[int]) -> dict[str, list[str]]:
        """Run to its artifacts, for all runs in these experiments, including deleted ones.

        Args:
            experiments: prefix of their names.
            keep: versions whose files are left out, as are those of base models, which met no person.
        """
        from mlflow.entities import ViewType

        with mlflow_client(self.project) as client:
            rows = client.search_model_versions(f"name = '{self.name}'")
            retained = {
                row.run_id for row in rows if int(row.version) in keep or row.tags.get(MODEL) == "base"
            }
            ids = [
                experiment.experiment_id
                for experiment in client.search_experiments(
                    view_type=ViewType.ALL, filter_string=f"name LIKE '{experiments}%'"
                )
            ]
            files = {}
            for run in _pages(client.search_runs, experiment_ids=ids, run_view_type=ViewType.ALL):
                paths = [file.path for file in client.list_artifacts(run.info.run_id)]
                files[run.info.run_id] = [p for p in paths if p != "model" or run.info.run_id not in retained]
        return {run: paths for run, paths in files.items() if paths}

    def delete_files(self, files: Mapping[str, Sequence[str]], *, time: str) -> list[str]:
        """Delete artifacts of runs, and mark the versions that lose their files; may be repeated.

        Args:
            files: run to its artifacts.
            time: time of the deletion, for the versions' tag.

        Returns:
            The versions that lost their files, as NAME/NUMBER.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        versions = []
        with mlflow_client(self.project) as client:
            for run, paths in files.items():
                store = get_artifact_repository(
                    client.get_run(run).info.artifact_uri, tracking_uri(self.project)
                )
                present = {file.path for file in client.list_artifacts(run)}
                for path in present & set(paths):
                    store.delete_artifacts(path)
                for row in client.search_model_versions(f"run_id = '{run}'") if "model" in paths else ():
                    client.set_model_version_tag(row.name, row.version, PURGED, time)
                    for alias in client.get_model_version(row.name, row.version).aliases:
                        client.delete_registered_model_alias(row.name, alias)
                    versions.append(f"{row.name}/{row.version}")
        return versions


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """All results of an MLflow search, page by page."""
    token = None
    while page := search(**arguments, page_token=token):
        yield from page
        token = page.token
        if not token:
            break


def _store(client: MlflowClient, run_id: str, model: ModelPayload) -> str:
    """Upload the folder or, if it is too large, a pointer for DVC; returns which of the two."""
    size = sum(file.stat().st_size for file in model.folder.rglob("*") if file.is_file())
    if size > LARGEST_UPLOAD:
        pointer = {"path": model.folder.as_posix(), "digest": model.digest, "bytes": size}
        client.log_dict(run_id, pointer, f"model/{POINTER}")
        return "dvc"
    current = digest(model.folder)
    if current != model.digest:
        raise ArtifactError(
            f"{model.folder} is not the model that was scored: its digest is {current[:12]}, expected "
            f"{model.digest[:12]}; restore it or score it again with: dvc repro"
        )
    client.log_artifacts(run_id, str(model.folder), "model")
    return "mlflow"


def _version(row: Any) -> Version:
    requests, parent = row.tags.get(REQUESTS), row.tags.get(PARENT)
    return Version(
        number=int(row.version),
        digest=row.tags[DIGEST],
        parent=int(parent.rpartition("/")[2]) if parent else None,
        folder=row.tags.get(FOLDER, ""),
        run=row.tags.get(RUN),
        requests=tuple(requests.split(",")) if requests else (),
        flow_run=row.tags.get(FLOW_RUN, ""),
        base=row.tags.get(MODEL) == "base",
        purged=PURGED in row.tags,
    )
