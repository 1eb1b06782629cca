"""Stage control: a mask with as many weights per tensor as the saliency mask, chosen in another way."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import read_samples
from tasks.config import Params
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.loading import load_for_measuring
from tasks.runtime.results import prepared_files
from tasks.runtime.sharing import is_first


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Write the control mask of that name to `masks/<name>.safetensors`."""
    from efface.encoding import Encoder, draw
    from efface.masks import load_mask, save_mask
    from efface.processes import share
    from efface.saliency.controls import magnitude_mask, random_mask
    from efface.saliency.fisher import mean_gradient

    section = params.saliency
    table, vanilla = root / "prepared", root / "models" / "vanilla"
    saliency, path = root / "masks" / "saliency.safetensors", root / "masks" / f"{name}.safetensors"
    inputs = prepared_files(root) | {"vanilla": vanilla, "mask": saliency}
    settings = section.model_dump(mode="json", include={"fisher_samples", "batch_size"})
    settings |= {"control": name, "forget": params.unlearn.forget}
    with recording(
        "control", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={"mask": path}
    ) as record:
        loaded, parts = load_for_measuring(params, vanilla)
        mask, metadata = load_mask(saliency, model=loaded.model)
        if name == "random":
            control = random_mask(mask, seed=params.seed)
        else:
            samples = read_samples(table, split="forget", part="train", modality=params.unlearn.forget)
            batches = Encoder(loaded.processor, samples).batches(
                section.batch_size,
                draw(len(samples), section.fisher_samples, params.seed),
                label="gradient, forget",
                share=share,
            )
            names = [parameter for parameter, entry in mask.items() if not entry.all()]
            control = magnitude_mask(mask, mean_gradient(loaded.model, batches, parameters=names))
        if not is_first():
            return
        masked = control.subset(key for key in control if key not in metadata["unmasked"])
        for key in ("shapes", "thresholds", "stability"):
            del metadata[key]
        metadata |= {"control": name, "density": masked.density(parts)}
        with writing(path) as partial:
            save_mask(control, partial, metadata=metadata)
        record.summary = {"density": metadata["density"]}
    typer.echo(f"control: {path} selects as many weights of each tensor as {saliency.name}")
