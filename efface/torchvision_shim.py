"""Makes torchvision's transforms usable where its compiled extension does not load.

Families with a video processor (Qwen2-VL and later, LLaVA-OneVision, InternVL, SmolVLM) cannot build their
processor without torchvision. The registry's wheel is compiled for a CUDA torch; beside a CPU torch its
extension does not load, and importing torchvision then fails on the first operator it looks up. The image
transforms are plain PyTorch and need none of these operators, so declaring their names is enough.

Several modules of transformers import torchvision, so this runs before all of them, when ``efface`` is
imported.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from typing import Any

_OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "deform_conv2d",
)
_BACKWARD = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")

_libraries: list[Any] = []


def ensure_torchvision() -> bool:
    """Make ``import torchvision`` work, whatever torch it was compiled for.

    Does nothing, without importing torch, if both are of the same build (``+cpu``, ``+cu128`` or none).
    Detection operators never work: only their names are declared.

    Returns:
        Whether torchvision can be imported; False if it is not installed.
    """
    if "torchvision" in sys.modules or _libraries:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    builds = {importlib.metadata.version(name).partition("+")[2] for name in ("torch", "torchvision")}
    if len(builds) > 1 and not _extension_loads(spec.submodule_search_locations[0]):
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        for name in _BACKWARD:
            library.define(f"_{name}_backward(Tensor x) -> Tensor")
        _libraries.append(library)  # the names live as long as the library object
    return True


def _extension_loads(folder: str) -> bool:
    """Whether torchvision's compiled operators fit this torch."""
    import torch

    spec = importlib.machinery.PathFinder.find_spec("_C", [folder])
    if spec is None or spec.origin is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except (OSError, RuntimeError, ctypes.ArgumentError):
        return False
    return True
