"""Which weights carry what is to be forgotten."""

from efface.saliency.files import load_mask, save_mask
from efface.saliency.fisher import fisher_diagonal, mean_gradient
from efface.saliency.mask import mask_density, saliency_mask

__all__ = [
    "fisher_diagonal",
    "load_mask",
    "mask_density",
    "mean_gradient",
    "saliency_mask",
    "save_mask",
]
