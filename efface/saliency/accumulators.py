"""Where sums over samples are kept: beside the weights, in main memory, or in a file mapped into it.

The sums are the same wherever they are: every place adds the same float32 numbers in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Place = Literal["auto", "device", "cpu", "disk"]
PLACES = ("auto", "device", "cpu", "disk")
_ROOM = 1.25
"""Free memory a place must have per byte of sums, so that batches fit as well."""


def accumulators(
    parameters: Mapping[str, Tensor], *, place: Place = "device", folder: Path | None = None
) -> dict[str, Tensor]:
    """Zeros of the parameters' shapes, float32.

    Args:
        parameters: tensors by name.
        place: ``device``: each beside its parameter; ``cpu``: main memory; ``disk``: a file without a name
            that is mapped into memory, whose pages the system writes out as it needs room; ``auto``: the
            first of these that has room.
        folder: for the file; None takes the system's folder for temporary files. It is gone with the last
            tensor, even if the process is killed.

    Raises:
        ValueError: if the place is none of these.
    """
    if place not in PLACES:
        raise ValueError(f"place is {place!r}: expected one of: {', '.join(PLACES)}")
    if place == "auto":
        place = _with_room(parameters)
    if place == "disk":
        return _mapped(parameters, folder)
    return {
        name: torch.zeros(p.shape, dtype=torch.float32, device=p.device if place == "device" else "cpu")
        for name, p in parameters.items()
    }


def _with_room(parameters: Mapping[str, Tensor]) -> Literal["device", "cpu", "disk"]:
    import psutil

    need = _ROOM * 4 * sum(p.numel() for p in parameters.values())
    devices = {p.device for p in parameters.values() if p.device.type == "cuda"}
    if devices and need <= min(torch.cuda.mem_get_info(device)[0] for device in devices):
        return "device"
    return "cpu" if need <= psutil.virtual_memory().available else "disk"


def _mapped(parameters: Mapping[str, Tensor], folder: Path | None) -> dict[str, Tensor]:
    sizes = [p.numel() for p in parameters.values()]
    if not sum(sizes):
        return {name: torch.zeros(p.shape) for name, p in parameters.items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # The name goes when the block ends; the mapping, and with it the file's content, lives on.
    with tempfile.NamedTemporaryFile(prefix=".sums-", dir=folder) as file:
        file.truncate(4 * sum(sizes))
        whole = torch.from_file(file.name, shared=True, size=sum(sizes), dtype=torch.float32)
    parts = whole.split(sizes)
    return {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
