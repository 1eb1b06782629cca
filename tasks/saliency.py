"""Stage saliency: which weights matter more for the forget people's pictures than for what must stay."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import read_samples
from tasks.config import Params
from tasks.runtime.artifacts import digest, recording, writing
from tasks.runtime.loading import load_for_measuring
from tasks.runtime.results import prepared_files
from tasks.runtime.sharing import is_first


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure both Fisher diagonals on the vanilla model and write `masks/saliency.safetensors`.

    Each of several processes measures its share of the batches, and the first one writes.
    """
    from efface.masks import save_mask
    from efface.models import weights_digest
    from efface.saliency.variants import measure_mask

    section = params.saliency
    table, vanilla = root / "prepared", root / "models" / "vanilla"
    path = root / "masks" / "saliency.safetensors"
    inputs = prepared_files(root) | {"vanilla": vanilla}
    settings = section.model_dump(mode="json", exclude={"controls"}) | {"forget": params.unlearn.forget}
    with recording(
        "saliency", settings, root=root, seed=params.seed, inputs=inputs, outputs={"mask": path}
    ) as record:
        loaded, parts = load_for_measuring(params, vanilla)
        masks, measured = measure_mask(
            loaded.model,
            loaded.processor,
            [
                *read_samples(table, split="forget", part="train", modality="text"),
                *read_samples(table, split="retain", part="train"),
                *read_samples(table, split="forget", part="train", modality="multimodal"),
            ],
            parts,
            variant=section.variant,
            groups=section.groups,
            forget=params.unlearn.forget,
            threshold=section.threshold,
            density=section.density,
            normalisation=section.normalisation,
            max_samples=section.fisher_samples,
            batch_size=section.batch_size,
            storage=section.storage,
            seed=params.seed,
        )
        if not is_first():
            return
        metadata = {
            "variant": section.variant,
            "threshold": section.threshold,
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
            **measured,
        }
        with writing(path) as partial:
            save_mask(masks, partial, metadata=metadata)
        record.summary = {"density": measured["density"], "stability": measured["stability"]}
    density, stability = measured["density"], measured["stability"] or {}
    shares = ", ".join(f"{group} {share:.1%}" for group, share in density["groups"].items())
    agreement = stability.get("kappa")
    typer.echo(
        f"saliency: {path} selects {density['total']:.1%} of the weights ({shares})"
        + (f"; kappa of two half-samples {agreement:.2f}" if agreement is not None else "")
    )
