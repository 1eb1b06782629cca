"""Masks of a model's weights, in memory and in files, at one bit per weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.models import Anatomy

METADATA_KEY = "efface"


class Masks(Mapping[str, Tensor]):
    """Boolean tensors by parameter name; True = may change.

    Entries are stored as packed bits, and indexing unpacks one: ``masks[name]`` is a new bool tensor of the
    parameter's shape, on the device of the bits.

    Args:
        masks: boolean tensors by parameter name, on any device; their bits are stored in main memory.

    Attributes:
        bits: per parameter the packed bits, uint8, little bit order, row-major (``pack``).
        shapes: shape of each parameter.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None):
        self.bits: dict[str, Tensor] = {}
        self.shapes: dict[str, torch.Size] = {}
        for name, mask in (masks or {}).items():
            self.bits[name], self.shapes[name] = pack(mask), mask.shape

    @classmethod
    def from_bits(cls, bits: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> Masks:
        """Masks from bits that are already packed."""
        masks = cls()
        masks.bits = dict(bits)
        masks.shapes = {name: torch.Size(shapes[name]) for name in bits}
        return masks

    def __getitem__(self, name: str) -> Tensor:
        return unpack(self.bits[name], self.shapes[name])

    def __contains__(self, name: object) -> bool:
        return name in self.bits

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __or__(self, other: Masks) -> Masks:
        """The entries of both; ``other`` takes precedence."""
        return Masks.from_bits(self.bits | other.bits, self.shapes | other.shapes)

    def subset(self, names: Iterable[str]) -> Masks:
        """The entries of these names, without copying them."""
        return Masks.from_bits({name: self.bits[name] for name in names}, self.shapes)

    def to(self, device: torch.device | str) -> Masks:
        """The masks with their bits on a device."""
        return Masks.from_bits({name: bits.to(device) for name, bits in self.bits.items()}, self.shapes)

    def any(self) -> bool:
        """Whether any weight may change."""
        return any(bool(bits.any()) for bits in self.bits.values())

    def density(self, anatomy: Anatomy) -> dict[str, Any]:
        """Share of True: ``total``, and by ``groups``, ``layers`` (``language.3``) and ``kinds`` of module
        (``q_proj``).

        Args:
            anatomy: parts of the model without LoRA; LoRA's factors count for the weight they change.
        """
        from efface.models.anatomy import layer_index
        from efface.models.lora import weight_of

        group_of = {name: group for group, names in anatomy.groups.items() for name in names}
        counts: dict[str, dict[str, list[int]]] = {"groups": {}, "layers": {}, "kinds": {}}
        for parameter, mask in self.items():
            weight, true = weight_of(parameter), int(mask.sum())
            group, layer = group_of[weight], layer_index(weight)
            keys = {"groups": group, "kinds": weight.split(".")[-2]}
            if layer is not None:
                keys["layers"] = f"{group}.{layer}"
            for level, key in keys.items():
                pair = counts[level].setdefault(key, [0, 0])
                pair[0] += true
                pair[1] += mask.numel()
        shares = {level: {key: a / b for key, (a, b) in entries.items()} for level, entries in counts.items()}
        pairs = list(counts["groups"].values())
        return {"total": sum(a for a, _ in pairs) / max(1, sum(b for _, b in pairs)), **shares}


def pack(mask: Tensor) -> Tensor:
    """The bits of a boolean tensor, uint8 in main memory: eight to a byte, the first in the lowest bit, the
    last byte padded with zeros."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little"))


def unpack(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """The boolean tensor of that shape from its packed bits, on their device."""
    size = math.prod(shape)
    if bits.device.type == "cpu":
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=size, bitorder="little").view(np.bool_))
    else:
        flat = _unpack_on_device(bits)[:size]
    return flat.reshape(tuple(shape))


def _unpack_on_device(bits: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).view(-1).bool()


def save_mask(mask: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, Any]) -> None:
    """Write a mask: per parameter one uint8 tensor of packed bits, little bit order, row-major.

    Args:
        mask: boolean tensors by parameter name.
        path: the safetensors file.
        metadata: what the mask was made from, including ``model_digest``; ``shapes`` is added. Stored as one
            JSON entry, so that the same mask always gives the same bytes.
    """
    masks = (mask if isinstance(mask, Masks) else Masks(mask)).to("cpu")
    shapes = {name: list(shape) for name, shape in masks.shapes.items()}
    record = {"kind": "saliency_mask", **metadata, "shapes": shapes}
    save_file(masks.bits, path, metadata={METADATA_KEY: json.dumps(record, sort_keys=True)})


def load_mask(path: Path, *, model: PreTrainedModel | None = None) -> tuple[Masks, dict[str, Any]]:
    """Read a mask and its metadata.

    Args:
        path: file written by ``save_mask``.
        model: the model that the mask is for; checked if given.

    Raises:
        ArtifactError: if the file is damaged or not a mask, or the model has other shapes or other weights
            than the one the mask was made from.
    """
    metadata = read_metadata(path, kind="saliency_mask")
    if model is not None:
        parameters = dict(model.named_parameters())
        for name, shape in metadata["shapes"].items():
            actual = list(parameters[name].shape) if name in parameters else "no such parameter"
            if actual != shape:
                raise ArtifactError(
                    f"{path} was made for another model: {name} has shape {shape} in the mask, {actual} in "
                    "the model; make the mask from this model"
                )
        check_digest(path, metadata, model)
    with safe_open(path, framework="pt") as file:
        bits = {name: file.get_tensor(name) for name in metadata["shapes"]}
    return Masks.from_bits(bits, metadata["shapes"]), metadata


def read_metadata(path: Path, *, kind: str) -> dict[str, Any]:
    """Metadata of a mask or importance file, without its tensors.

    Args:
        path: the safetensors file.
        kind: what it must hold, ``saliency_mask`` or ``neuron_importance``.

    Raises:
        ArtifactError: if the file is missing, damaged or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {})[METADATA_KEY]))
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path} is not a complete {kind} file (expected safetensors with a {METADATA_KEY!r} entry, got "
            f"{type(error).__name__}: {error}); restore or rebuild it"
        ) from error
    if metadata.get("kind") != kind:
        raise ArtifactError(f"{path} holds {metadata.get('kind')!r}, expected {kind!r}")
    return metadata


def check_digest(path: Path, metadata: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Check that a file was made from the model's weights.

    Raises:
        ArtifactError: if the digests differ.
    """
    from efface.models import weights_digest

    digest = weights_digest(model)
    if digest != metadata["model_digest"]:
        raise ArtifactError(
            f"{path} was made from other weights (digest {metadata['model_digest'][:12]}) than this model's "
            f"({digest[:12]}); make it from this model"
        )
