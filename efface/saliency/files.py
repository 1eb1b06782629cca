"""Mask files: one bit per weight, bound to the model they were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import ArtifactError
from efface.masks import PackedMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "efface"
_RESTORE = "restore it with `dvc checkout`, or rebuild it with `dvc repro`"


def save_mask(mask: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, Any]) -> None:
    """Write a mask: per parameter one uint8 tensor of packed bits, little bit order, row-major.

    No more than one entry is unpacked at a time, and none of a mask that is packed already.

    Args:
        mask: boolean tensors by parameter name.
        path: the safetensors file.
        metadata: what the mask was made from; ``shapes`` is added. Stored as one JSON entry, so that the
            same mask always gives the same bytes.
    """
    packed = PackedMask.of(mask, torch.device("cpu"))
    shapes = {name: list(shape) for name, shape in packed.shapes.items()}
    record = {"kind": "saliency_mask", **metadata, "shapes": shapes}
    save_file(packed.bits, path, metadata={KEY: json.dumps(record, sort_keys=True)})


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a file in ``data/masks`` without its tensors.

    Raises:
        ArtifactError: if the file is missing, damaged or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return dict(json.loads(metadata[KEY]))
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path} is not a whole file of this pipeline (expected safetensors with a {KEY!r} entry, got "
            f"{type(error).__name__}: {error}); {_RESTORE}"
        ) from error


def load_mask(path: Path, *, model: PreTrainedModel | None = None) -> tuple[PackedMask, dict[str, Any]]:
    """Read a mask, one bit per weight, and its metadata.

    Args:
        path: file written by ``save_mask``.
        model: the model the mask is meant for; checked when given.

    Returns:
        Boolean tensors by parameter name, each unpacked when it is asked for, and the metadata.

    Raises:
        ArtifactError: if the file is damaged or not a mask, or the model has other shapes or other weights
            than the one the mask was made from.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != "saliency_mask":
        raise ArtifactError(f"{path} holds {metadata.get('kind')!r}, expected a saliency mask")
    if model is not None:
        _check_shapes(path, metadata, model)
        require_model(path, metadata, model)
    with safe_open(path, framework="pt") as file:
        bits = {name: file.get_tensor(name) for name in metadata["shapes"]}
    return PackedMask(bits, metadata["shapes"]), metadata


def require_model(path: Path, metadata: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse a mask or importance file that was made from other weights than the model's.

    Raises:
        ArtifactError: if the weights differ.
    """
    from efface.models import weights_digest

    digest = weights_digest(model)
    if digest != metadata["model_digest"]:
        raise ArtifactError(
            f"{path} was made from other weights (digest {metadata['model_digest'][:12]}) than this "
            f"model's ({digest[:12]}); "
            "make it from this model: `dvc repro` does"
        )


def _check_shapes(path: Path, metadata: Mapping[str, Any], model: PreTrainedModel) -> None:
    parameters = dict(model.named_parameters())
    for name, shape in metadata["shapes"].items():
        found = list(parameters[name].shape) if name in parameters else "no such parameter"
        if found != shape:
            raise ArtifactError(
                f"{path} was made for another model: {name} has shape {shape} in the mask, {found} in the "
                f"model; make the "
                "mask from this model: `dvc repro` does"
            )
