"""Lets torchvision's transforms be used where its compiled extension does not load.

Families with a video processor (Qwen2-VL and later, LLaVA-OneVision, InternVL, SmolVLM) cannot build their
processor without torchvision. The registry's wheel of it is compiled against a CUDA torch; beside a CPU
torch its extension does not load, and importing torchvision then fails on the first operator it looks up. The
image transforms are plain PyTorch and need none of these operators, so declaring their names is enough.
"""

from __future__ import annotations

import importlib.machinery
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

_declared: list[Any] = []


def ensure_torchvision() -> bool:
    """Make ``import torchvision`` work, whatever torch it was compiled for.

    Where torchvision's own extension loads nothing is done. Detection operators are never made to work: they
    only get a name.

    Returns:
        Whether torchvision can be imported; False if it is not installed.
    """
    if "torchvision" in sys.modules:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    if not _extension_loads(spec.submodule_search_locations[0]):
        _declare_operators()
    return True


def _extension_loads(folder: str) -> bool:
    """Whether torchvision's compiled operators fit this torch."""
    import ctypes

    import torch

    found = importlib.machinery.PathFinder.find_spec("_C", [folder])
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)
    except (OSError, RuntimeError, ctypes.ArgumentError):
        return False
    return True


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
    for name in _BACKWARD:
        library.define(f"_{name}_backward(Tensor x) -> Tensor")
    _declared.append(library)  # the names live as long as the library object
