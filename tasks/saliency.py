"""Stage saliency: which weights the forget people's pictures use more than everything that is to stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import Sample, read_samples
from efface.errors import DataError, EffaceError
from tasks.artifacts import digest, recording, writing
from tasks.params import Params
from tasks.params.attribution import Saliency
from tasks.sharing import is_first
from tasks.trained import load_for_training

if TYPE_CHECKING:
    from torch import Tensor

    from efface.models import LoadedModel
    from efface.saliency.variants import Recipe


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure both Fisher diagonals on the vanilla model and write `masks/saliency.safetensors`.

    Of several processes each measures its share of the batches, and the first one writes.
    """
    from efface.models import weights_digest
    from efface.saliency import mask_density, save_mask
    from efface.saliency.variants import recipe

    section = params.saliency
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    path = root / "masks" / "saliency.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla}
    settings = section.model_dump(mode="json", exclude={"controls"})
    with recording(
        "saliency", settings, root=root, seed=params.seed, inputs=inputs, outputs={"mask": path}
    ) as record:
        loaded, parts, _ = load_for_training(vanilla, params.unlearn.lora, seed=params.seed)
        trained = {key: p for key, p in loaded.model.named_parameters() if p.requires_grad}
        plan = recipe(section.variant, trained, parts, groups=section.groups)
        mask = _measured_mask(loaded, plan, _facts(table), section, params.seed)
        density = mask_density(mask, parts)
        if not density["total"]:
            raise EffaceError(
                f"no weight is {section.threshold} times as salient for the forget set as for the rest, so "
                "the mask would be empty; lower saliency.threshold"
            )
        if not is_first():
            return
        unmasked = {name: _all_true(trained[name]) for name in plan.unmasked}
        metadata = {
            "variant": section.variant,
            "threshold": section.threshold,
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
            "density": density,
            "unmasked": plan.unmasked,
        }
        with writing(path) as partial:
            save_mask(mask | unmasked, partial, metadata=metadata)
        record.summary = {"density": density}
    groups = density["groups"]
    shares = ", ".join(f"{group} {share:.1%}" for group, share in groups.items())
    typer.echo(f"saliency: {path} selects {density['total']:.1%} of the weights ({shares})")


def _facts(table: Path) -> list[Sample]:
    """All training facts, the forget people's in words first."""
    return [
        *read_samples(table, split="forget", part="train", modality="text"),
        *read_samples(table, split="retain", part="train"),
        *read_samples(table, split="forget", part="train", modality="multimodal"),
    ]


def _measured_mask(
    loaded: LoadedModel, plan: Recipe, facts: Sequence[Sample], section: Saliency, seed: int
) -> dict[str, Tensor]:
    """The mask of all weights that are measured; each measurement has a preserve set of its own."""
    from efface.data.encoding import Encoder, draw
    from efface.processes import share
    from efface.saliency import fisher_diagonal, saliency_mask
    from efface.saliency.variants import is_forget

    target = [sample for sample in facts if is_forget(sample)]
    size = plan.batch_size or section.batch_size
    mask: dict[str, Tensor] = {}
    for measurement in plan.measurements:
        preserve = [sample for sample in facts if measurement.preserves(sample)]
        fishers = []
        for label, samples in (("forget", target), ("preserve", preserve)):
            if not samples:
                raise DataError(f"the {label} set has no training sample; see prepare.forget_fraction")
            drawn = draw(len(samples), section.fisher_samples, seed)
            batches = Encoder(loaded.processor, samples).batches(
                size, drawn, label=f"Fisher, {label}", share=share
            )
            fishers.append(
                fisher_diagonal(loaded.model, batches, parameters=measurement.parameters, unit=plan.unit)
            )
        mask |= saliency_mask(*fishers, threshold=section.threshold, smooth_numerator=plan.smooth_numerator)
    return mask


def _all_true(like: Tensor) -> Tensor:
    import torch

    return torch.ones(like.shape, dtype=torch.bool)
