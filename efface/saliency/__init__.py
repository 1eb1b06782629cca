"""Saliency: which weights matter more for what to forget than for what to retain."""

from efface.masks import Masks, load_mask, save_mask
from efface.saliency.fisher import fisher_diagonal, mean_gradient
from efface.saliency.mask import saliency_mask

__all__ = ["Masks", "fisher_diagonal", "load_mask", "mean_gradient", "saliency_mask", "save_mask"]
