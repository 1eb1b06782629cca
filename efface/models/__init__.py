"""Loading multimodal LLMs and finding their parts."""

from efface.models.anatomy import Anatomy, anatomy
from efface.models.loading import LoadedModel, default_device, load_model, save_model, weights_digest
from efface.models.mlps import MLP
from efface.models.source import Source

__all__ = [
    "MLP",
    "Anatomy",
    "LoadedModel",
    "Source",
    "anatomy",
    "default_device",
    "load_model",
    "save_model",
    "weights_digest",
]
