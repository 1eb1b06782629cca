"""Importance files: statistics and scores of every neuron, so that other fractions need no new forward
pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.errors import ArtifactError
from efface.importance.scores import relative_importance
from efface.importance.statistics import ActivationStatistics
from efface.saliency.files import KEY, read_metadata

Statistics = Mapping[str, ActivationStatistics]


def save_importance(
    path: Path,
    *,
    statistics: Mapping[str, Statistics],
    importance: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
) -> None:
    """Write statistics (``forget.multimodal``, ``forget.text``, ``retain.multimodal``, ``retain.text``) and
    importance.

    Args:
        path: the safetensors file.
        statistics: rendering -> MLP name -> statistics.
        importance: ``forget``/``retain`` -> MLP name -> importance per neuron; their ratio is stored as
            ``score``.
        metadata: what it was made from, stored as one JSON entry.
    """
    tensors: dict[str, Tensor] = {}
    for rendering, by_mlp in statistics.items():
        for name, values in by_mlp.items():
            for field in ("mean_abs", "variance", "sum_square", "active"):
                tensors[f"{name}/{rendering}.{field}"] = getattr(values, field).float()
    for kind, by_mlp_scores in importance.items():
        for name, value in by_mlp_scores.items():
            tensors[f"{name}/importance.{kind}"] = value.float()
    for name, value in relative_importance(importance["forget"], importance["retain"]).items():
        tensors[f"{name}/score"] = value.float()
    record = {"kind": "neuron_importance", **metadata}
    save_file(tensors, path, metadata={KEY: json.dumps(record, sort_keys=True)})


def load_importance(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read importance (``forget``/``retain`` -> MLP name -> (N,) float32) and the metadata.

    Raises:
        ArtifactError: if the file is damaged or holds something else.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != "neuron_importance":
        raise ArtifactError(f"{path} holds {metadata.get('kind')!r}, expected neuron importance")
    importance: dict[str, dict[str, Tensor]] = {"forget": {}, "retain": {}}
    for key, tensor in load_file(path).items():
        name, _, kind = key.rpartition("/")
        if kind.startswith("importance."):
            importance[kind.removeprefix("importance.")][name] = tensor
    order = [mlp["name"] for mlp in metadata["mlps"]]
    return {kind: {name: values[name] for name in order} for kind, values in importance.items()}, metadata
