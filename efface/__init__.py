"""Efface: make a multimodal LLM forget people, and measure what it still knows."""

from importlib import import_module
from typing import Any

from efface.torchvision_shim import ensure_torchvision

__version__ = "0.1.0"

_HOMES = {
    "load_model": "efface.models",
    "read_samples": "efface.data.samples",
    "Encoder": "efface.encoding",
    "fisher_diagonal": "efface.saliency",
    "saliency_mask": "efface.saliency",
    "neuron_importance": "efface.neurons",
    "prune": "efface.neurons",
    "unlearn": "efface.unlearning.unlearn",
    "TrainingConfig": "efface.unlearning",
    "METHODS": "efface.unlearning",
    "score": "efface.evaluation.scoring",
}
__all__ = ["__version__", *_HOMES]


ensure_torchvision()  # before any module of transformers imports torchvision


def __getattr__(name: str) -> Any:
    # Names are imported at first use: torch alone takes seconds.
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
