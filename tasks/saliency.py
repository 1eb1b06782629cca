"""Stage saliency: which weights the forget people's pictures use more than everything that is to stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import Sample, read_samples
from efface.errors import DataError, EffaceError
from tasks.config import Params
from tasks.config.attribution import Saliency
from tasks.runtime.artifacts import digest, recording, writing
from tasks.runtime.loading import load_for_training
from tasks.runtime.sharing import is_first

if TYPE_CHECKING:
    from torch import Tensor

    from efface.encoding import Inputs
    from efface.masks import Masks
    from efface.models import LoadedModel
    from efface.saliency.variants import Recipe


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure both Fisher diagonals on the vanilla model and write `masks/saliency.safetensors`.

    Of several processes each measures its share of the batches, and the first one writes.
    """
    from efface.masks import Masks, save_mask
    from efface.models import weights_digest
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
        mask = _measured_mask(loaded, plan, _facts(table), section, params.seed, path.parent)
        density = mask.density(parts)
        if not density["total"]:
            raise EffaceError(
                f"no weight is {section.threshold} times as salient for the forget set as for the rest, so "
                "the mask would be empty; lower saliency.threshold"
            )
        if not is_first():
            return
        unmasked = Masks({name: _all_true(trained[name]) for name in plan.unmasked})
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
    loaded: LoadedModel, plan: Recipe, facts: Sequence[Sample], section: Saliency, seed: int, folder: Path
) -> Masks:
    """The mask of all weights that are measured; each measurement has a preserve set of its own."""
    from efface.encoding import Encoder, draw
    from efface.masks import Masks
    from efface.processes import share
    from efface.saliency.variants import is_forget

    target = [sample for sample in facts if is_forget(sample)]
    size = plan.batch_size or section.batch_size
    mask = Masks()
    for measurement in plan.measurements:
        preserve = [sample for sample in facts if measurement.preserves(sample)]
        batches, counts = [], []
        for label, samples in (("forget", target), ("preserve", preserve)):
            if not samples:
                raise DataError(f"the {label} set has no training sample; see prepare.forget_fraction")
            drawn = draw(len(samples), section.fisher_samples, seed)
            encoder = Encoder(loaded.processor, samples)
            batches.append(encoder.batches(size, drawn, label=f"Fisher, {label}", share=share))
            counts.append(len(drawn) if plan.unit == "sample" else encoder.count(size, drawn))
        options = {"parameters": measurement.parameters, "unit": plan.unit}
        options |= {"place": section.sums, "folder": folder}
        mask |= _compared(loaded, plan, section, batches, counts, options)
    return mask


def _compared(
    loaded: LoadedModel,
    plan: Recipe,
    section: Saliency,
    batches: Sequence[Iterator[Inputs]],
    counts: Sequence[int],
    options: Mapping[str, Any],
) -> Masks:
    """The mask of one measurement, from two Fisher diagonals or from their difference."""
    from efface.saliency.fisher import fisher_contrast, fisher_diagonal
    from efface.saliency.mask import contrast_mask, packed_saliency_mask

    ratio = {"threshold": section.threshold, "smooth_numerator": plan.smooth_numerator}
    if section.both_in_one:
        forget, preserve = batches
        contrast = fisher_contrast(
            loaded.model,
            forget,
            preserve,
            counts=(counts[0], counts[1]),
            threshold=section.threshold,
            **options,
        )
        return contrast_mask(contrast, **ratio)
    fishers = [fisher_diagonal(loaded.model, part, **options) for part in batches]
    return packed_saliency_mask(*fishers, **ratio)


def _all_true(like: Tensor) -> Tensor:
    import torch

    return torch.ones(like.shape, dtype=torch.bool)
