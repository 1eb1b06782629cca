"""Loading multimodal LLMs and finding their parts."""

from efface.models.torchvision_shim import ensure_torchvision

ensure_torchvision()  # before anything of transformers looks for it

from efface.models.anatomy import MLP, Anatomy, anatomy  # noqa: E402
from efface.models.loading import LoadedModel, load_model, save_model, weights_digest  # noqa: E402

__all__ = ["MLP", "Anatomy", "LoadedModel", "anatomy", "load_model", "save_model", "weights_digest"]
