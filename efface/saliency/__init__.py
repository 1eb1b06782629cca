"""Which weights carry what is to be forgotten.

Functions come from their modules when they are first asked for: who only reads a mask needs none of what
makes one. Modules of this project import them from where they are, so that dvc.yaml can say which.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "fisher_diagonal": "fisher",
    "load_mask": "files",
    "mask_density": "mask",
    "mean_gradient": "fisher",
    "saliency_mask": "mask",
    "save_mask": "files",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
