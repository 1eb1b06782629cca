"""Loading multimodal LLMs and finding their parts."""

from efface.models.anatomy import MLP, Anatomy, anatomy
from efface.models.loading import LoadedModel, load_model, save_model, weights_digest

__all__ = ["MLP", "Anatomy", "LoadedModel", "anatomy", "load_model", "save_model", "weights_digest"]
