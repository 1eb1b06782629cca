"""Loading models as unlearning trains them, in float32 or with LoRA factors; masks are made from the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.memory import require_memory

if TYPE_CHECKING:
    from efface.models import Anatomy, LoadedModel
    from efface.models.lora import Adapter
    from tasks.config import Params
    from tasks.config.unlearning import Lora


def load_for_training(
    params: Params, folder: Path, *, lora: Lora | None
) -> tuple[LoadedModel, Adapter | None]:
    """Load a model, and add LoRA factors if configured.

    Args:
        params: parameters; their seed draws the factors, so that a mask fits its run.
        folder: the model.
        lora: the section `unlearn.lora`; None: all weights train.
    """
    require_memory(params, folder, "training", lora=lora)
    loaded = _load(params, folder, lora)
    return loaded, _add_factors(loaded, lora, params.seed)


def load_for_measuring(params: Params, folder: Path) -> tuple[LoadedModel, Anatomy]:
    """Load a model as unlearning trains it, with the parts of the model without the factors."""
    from efface.models import anatomy

    lora = params.unlearn.lora
    require_memory(params, folder, "saliency", lora=lora)
    loaded = _load(params, folder, lora)
    parts = anatomy(loaded.model)
    _add_factors(loaded, lora, params.seed)
    return loaded, parts


def _load(params: Params, folder: Path, lora: Lora | None) -> LoadedModel:
    from efface.models import load_model

    # Weights that train are float32; under LoRA the others keep their saved precision.
    return load_model(
        folder,
        dtype="float32" if lora is None else "auto",
        quantization=None if lora is None else lora.quantization,
        trust_remote_code=params.base.trust_remote_code,
    )


def _add_factors(loaded: LoadedModel, lora: Lora | None, seed: int) -> Adapter | None:
    from efface.models.lora import add_lora

    return None if lora is None else add_lora(loaded.model, lora.shape, seed=seed)
