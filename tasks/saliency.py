"""Stage saliency: which weights the forget people's pictures use more than everything that is to stay."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import read_samples
from tasks.artifacts import digest, recording, writing
from tasks.params import Params


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure both Fisher diagonals on the vanilla model and write `masks/saliency.safetensors`."""
    from efface.data.encoding import Encoder, draw
    from efface.models import anatomy, load_model, weights_digest
    from efface.saliency import fisher_diagonal, mask_density, saliency_mask, save_mask

    section = params.saliency
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    path = root / "masks" / "saliency.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla}
    with recording(
        "saliency", section, root=root, seed=params.seed, inputs=inputs, outputs={"mask": path}
    ) as record:
        loaded = load_model(vanilla)
        parts = anatomy(loaded.model)
        chosen = {name for group in section.groups for name in parts.groups[group]}
        names = [name for name in parts.maskable if name in chosen]
        target = read_samples(table, split="forget", part="train", modality="multimodal")
        preserve = [
            *read_samples(table, split="forget", part="train", modality="text"),
            *read_samples(table, split="retain", part="train"),
        ]
        fishers = []
        for label, samples in (("Fisher, forget", target), ("Fisher, preserve", preserve)):
            drawn = draw(len(samples), section.fisher_samples, params.seed)
            batches = Encoder(loaded.processor, samples).batches(section.batch_size, drawn, label=label)
            fishers.append(fisher_diagonal(loaded.model, batches, parameters=names))
        mask = saliency_mask(*fishers, threshold=section.threshold)
        density = mask_density(mask, parts)
        metadata = {
            "variant": section.variant,
            "threshold": section.threshold,
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
            "density": density,
        }
        with writing(path) as partial:
            save_mask(mask, partial, metadata=metadata)
        record.summary = {"density": density}
    groups = density["groups"]
    shares = ", ".join(f"{group} {share:.1%}" for group, share in groups.items())
    typer.echo(f"saliency: {path} selects {density['total']:.1%} of the weights ({shares})")
