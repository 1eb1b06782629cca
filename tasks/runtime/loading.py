"""The model as unlearning trains it: whole in float32, or with LoRA factors. Masks are made from the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efface.models import Anatomy, LoadedModel
    from efface.models.lora import Adapter
    from tasks.config.unlearning import Lora


def load_for_training(
    folder: Path, lora: Lora | None, *, seed: int
) -> tuple[LoadedModel, Anatomy, Adapter | None]:
    """Load a model, and give it factors if there are to be any.

    Args:
        folder: the model.
        lora: the section `unlearn.lora`; None: all weights train.
        seed: draws the factors; the same seed gives the same ones, so a mask fits the run it is made for.

    Returns:
        The model, its parts without the factors, and the factors.
    """
    from efface.models import anatomy, load_model
    from efface.models.lora import Lora as Shape
    from efface.models.lora import add_lora

    # Weights that train are kept in float32; under LoRA the others stay as they were saved.
    loaded = load_model(
        folder,
        dtype="float32" if lora is None else "auto",
        quantization=None if lora is None else lora.quantization,
    )
    parts = anatomy(loaded.model)
    if lora is None:
        return loaded, parts, None
    shape = Shape(lora.rank, lora.alpha, lora.dropout, lora.components)
    return loaded, parts, add_lora(loaded.model, shape, seed=seed)
