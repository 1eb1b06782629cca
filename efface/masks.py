"""Masks at one bit per weight, in memory as on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_TILE = 2**18
"""Weights masked at a time, a multiple of 8: a MiB of float32."""


class PackedMask(Mapping[str, Tensor]):
    """A mask of which every entry is unpacked when it is asked for, and never kept unpacked.

    Args:
        bits: per parameter the packed bits, uint8, little bit order, row-major; see ``pack``.
        shapes: shape of each parameter.
    """

    def __init__(self, bits: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]):
        self.bits = dict(bits)
        self.shapes = {name: torch.Size(shapes[name]) for name in bits}

    @classmethod
    def of(cls, mask: Mapping[str, Tensor], device: torch.device | None = None) -> PackedMask:
        """The mask packed entry by entry, on a device if one is named."""
        if isinstance(mask, PackedMask):
            return mask if device is None else mask.to(device)
        bits, shapes = {}, {}
        for name, entry in mask.items():
            bits[name], shapes[name] = pack(entry).to(device or entry.device), entry.shape
        return cls(bits, shapes)

    def __getitem__(self, name: str) -> Tensor:
        """The boolean tensor of a parameter; True = may change."""
        return unpack(self.bits[name], self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __or__(self, other: PackedMask) -> PackedMask:
        """The entries of both; where both have one, the other's."""
        return PackedMask(self.bits | other.bits, self.shapes | other.shapes)

    def to(self, device: torch.device) -> PackedMask:
        """The mask on a device."""
        return PackedMask({name: bits.to(device) for name, bits in self.bits.items()}, self.shapes)

    def any(self) -> bool:
        """Whether a weight may change at all."""
        return any(bool(bits.any()) for bits in self.bits.values())


def pack(entry: Tensor) -> Tensor:
    """The bits of a boolean tensor, eight to a byte, the first in the lowest place; the last byte is filled
    up with zeros. uint8, on the tensor's device."""
    flat = entry.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (padded << _places(flat.device)).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of that shape whose bits ``pack`` packed, on their device."""
    size = math.prod(shape)
    if bits.device.type == "cpu":
        return torch.from_numpy(
            np.unpackbits(bits.numpy(), count=size, bitorder="little").view(np.bool_)
        ).reshape(shape)
    return ((bits[:, None] >> _places(bits.device)) & 1).view(-1)[:size].bool().reshape(shape)


def keep_only(tensor: Tensor, bits: Tensor) -> Tensor:
    """Multiply a tensor by its mask, in place: what is outside becomes 0. On a processor one tile after the
    other, which the mask meets in the cache; torch's own product of floats and booleans takes three times as
    long."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor.mul_(unpack(bits, tensor.shape))
    flat, packed = tensor.view(-1), bits.numpy()
    buffer = torch.empty(min(_TILE, len(flat)), dtype=tensor.dtype)
    for start in range(0, len(flat), _TILE):
        tile = flat[start : start + _TILE]
        kept = np.unpackbits(packed[start // 8 : (start + _TILE) // 8], count=len(tile), bitorder="little")
        tile.mul_(buffer[: len(tile)].copy_(torch.from_numpy(kept)))
    return tensor


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
