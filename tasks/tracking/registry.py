"""MLflow's model registry: one registered model per base model and data, one version per set of weights.

A version carries the digest of its weights, so the same weights are never stored twice, and names the version
it was made from. So base -> vanilla -> unlearned can be followed in MLflow, and every version loads with
transformers (docs/operations.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import ArtifactError
from tasks.runtime.artifacts import digest
from tasks.tracking.addresses import shown

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

LARGEST_UPLOAD = 2 << 30
"""Bytes; a larger model stays with DVC, and its version holds a small file that says where."""
DIGEST = "efface.model_digest"
PARENT = "efface.parent"
STORED = "efface.stored"
POINTER = "stored-with-dvc.json"
_LONGEST = 5000


@dataclass(frozen=True)
class Candidate:
    """Weights that may become a version.

    Attributes:
        name: of the registered model.
        folder: a Hugging Face folder.
        digest: of that folder, from when the model was scored.
        role: base, vanilla, retrained, or method.
        parent: digest of the model that training or pruning started from; None for a base model.
        description: shown on the version's page, Markdown.
        tags: more about it.
    """

    name: str
    folder: Path
    digest: str
    role: str
    parent: str | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


def registered_name(benchmark: str, base_source: str) -> str:
    """Name of the registered model: ``efface-avatars-sandbox``, ``efface-mllmu-llava-1.5-7b-hf``."""
    return f"efface-{benchmark}-{re.sub(r'[^A-Za-z0-9._-]+', '-', base_source.rstrip('/').split('/')[-1])}"


def alias_of(model: str) -> str:
    """A model's name as an alias, where MLflow allows letters, digits, dashes and underscores alone."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", model)
    return f"model-{name}" if name == "latest" or re.fullmatch(r"v\d+", name) else name


class Registry:
    """Versions and aliases, each step looking first whether it was done before."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def register(self, run_id: str, candidate: Candidate) -> str:
        """Store the folder with the run and make it a version, unless these weights are one already.

        Returns:
            The version.

        Raises:
            ArtifactError: if the folder is not what was scored.
        """
        version = self.version(candidate.name, candidate.digest)
        if version is not None:
            return version
        stored = self._store(run_id, candidate)
        if not self.client.search_registered_models(f"name = '{candidate.name}'"):
            self.client.create_registered_model(candidate.name, description=_ABOUT)
        tags = {DIGEST: candidate.digest, "efface.role": candidate.role, STORED: stored, **candidate.tags}
        made = self.client.create_model_version(
            candidate.name,
            f"{self.client.get_run(run_id).info.artifact_uri}/model",
            run_id,
            tags={key: shown(value)[:_LONGEST] for key, value in (tags | self._lineage(candidate)).items()},
            description=shown(candidate.description)[:_LONGEST] or None,
            await_creation_for=0,
        )
        return str(made.version)

    def version(self, name: str, model_digest: str) -> str | None:
        """The newest version with these weights."""
        found = [
            int(version.version)
            for version in self.client.search_model_versions(f"name = '{name}'")
            if version.tags.get(DIGEST) == model_digest
        ]
        return str(max(found)) if found else None

    def at(self, name: str, alias: str) -> ModelVersion | None:
        """The version an alias points at; None without such a model or alias."""
        if str(self._aliases(name).get(alias) or "") == "":
            return None
        return self.client.get_model_version_by_alias(name, alias)

    def point(self, name: str, alias: str, version: str) -> bool:
        """Let an alias name a version; False if it did already."""
        if str(self._aliases(name).get(alias)) == version:
            return False
        self.client.set_registered_model_alias(name, alias, version)
        return True

    def _aliases(self, name: str) -> Mapping[str, str]:
        found = self.client.search_registered_models(f"name = '{name}'")
        return dict(self.client.get_registered_model(name).aliases) if found else {}

    def _lineage(self, candidate: Candidate) -> dict[str, str]:
        if candidate.parent is None:
            return {}
        version = self.version(candidate.name, candidate.parent)
        known = {} if version is None else {PARENT: f"models:/{candidate.name}/{version}"}
        return known | {f"{PARENT}_digest": candidate.parent}

    def _store(self, run_id: str, candidate: Candidate) -> str:
        """Upload the folder; or, if it is too large, what DVC needs to find it. Returns where it is."""
        size = sum(file.stat().st_size for file in candidate.folder.rglob("*") if file.is_file())
        if size <= LARGEST_UPLOAD:
            _require_same(candidate)
            self.client.log_artifacts(run_id, str(candidate.folder), "model")
            return "mlflow"
        pointer = {
            "path": candidate.folder.as_posix(),
            "digest": candidate.digest,
            "bytes": size,
            **candidate.tags,
        }
        self.client.log_dict(run_id, pointer, f"model/{POINTER}")
        return "dvc"


def _require_same(candidate: Candidate) -> None:
    found = digest(candidate.folder)
    if found != candidate.digest:
        raise ArtifactError(
            f"{candidate.folder} is not the model that was scored (digest {candidate.digest[:12]} then, "
            f"{found[:12]} now); restore or score it again with: dvc repro"
        )


_ABOUT = (
    "The models of one base model and one benchmark: what it was before training on the people (base), "
    "after (vanilla), trained without those to forget (retrained), and what each method made of vanilla. "
    f"The aliases name the newest of each; the tag {PARENT} of a version names the one it was made from."
)
