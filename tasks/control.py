"""Stage control: a mask with as many weights per tensor as the saliency mask, chosen in another way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import read_samples
from tasks.config import Params
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.loading import load_for_training
from tasks.runtime.sharing import is_first

if TYPE_CHECKING:
    from torch import Tensor

    from efface.models import LoadedModel


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write the control mask of that name to `masks/<name>.safetensors`."""
    from efface.masks import Masks, load_mask, save_mask
    from efface.saliency.controls import magnitude_mask, random_mask

    section = params.saliency
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    saliency, path = root / "masks" / "saliency.safetensors", root / "masks" / f"{name}.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla, "mask": saliency}
    settings = {"control": name, "fisher_samples": section.fisher_samples, "batch_size": section.batch_size}
    with recording(
        "control", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"mask": path}
    ) as record:
        loaded, parts, _ = load_for_training(vanilla, params.unlearn.lora, seed=params.seed)
        mask, metadata = load_mask(saliency, model=loaded.model)
        if name == "random":
            chosen = random_mask(mask, seed=params.seed)
        else:
            partly = [parameter for parameter, entry in mask.items() if not entry.all()]
            chosen = magnitude_mask(mask, _forget_gradient(loaded, partly, table, params))
        if not is_first():
            return
        del metadata["shapes"]
        masked = {key: entry for key, entry in chosen.items() if key not in set(metadata["unmasked"])}
        metadata |= {"control": name, "density": Masks(masked).density(parts)}
        with writing(path) as partial:
            save_mask(chosen, partial, metadata=metadata)
        record.summary = {"density": metadata["density"]}
    typer.echo(f"control: {path} selects as many weights of each tensor as {saliency.name}")


def _forget_gradient(
    loaded: LoadedModel, parameters: list[str], table: Path, params: Params
) -> dict[str, Tensor]:
    from efface.encoding import Encoder, draw
    from efface.processes import share
    from efface.saliency.fisher import mean_gradient

    section = params.saliency
    samples = read_samples(table, split="forget", part="train", modality="multimodal")
    drawn = draw(len(samples), section.fisher_samples, params.seed)
    batches = Encoder(loaded.processor, samples).batches(
        section.batch_size, drawn, label="gradient, forget", share=share
    )
    return mean_gradient(loaded.model, batches, parameters=parameters)
