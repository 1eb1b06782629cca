"""MMUnlearner's mask as the paper defines it and as the released code computes it.

| | ``paper`` | ``official_code`` |
|---|---|---|
| squared | each sample's gradient | the gradient of each batch of 4 |
| preserved by vision and projector | all training facts but those forgotten | retain with pictures |
| preserved by language | the same | retain with pictures, everyone in text |
| no gradient in either set | not salient | salient |
| candidates in the groups | linear and convolutional layers | names with proj, fc, linear, mlp, qkv |
| all other weights | no forget gradient | the whole forget gradient |
| LoRA's A while B is zero, so without a gradient | a row follows the column of B it multiplies | salient |

Layers that no answer depends on are in neither mask. The released code measures on evaluation questions and
in half precision; neither is reproduced.

Reference:
    Huo et al., "MMUnlearner", arXiv:2502.11051.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from efface.data.samples import Sample
from efface.encoding import Encoder, draw
from efface.errors import DataError, ModelError
from efface.masks import Masks
from efface.models.anatomy import GROUPS
from efface.models.lora import weight_of
from efface.processes import share
from efface.saliency.fisher import SquaredGradients, Storage
from efface.saliency.mask import kappa, ratio_threshold, saliency_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models import Anatomy

Variant = Literal["paper", "official_code"]
Normalisation = Literal["pooled", "per_group"]
OFFICIAL_NAMES = ("proj", "fc", "linear", "mlp", "qkv")
OFFICIAL_BATCH = 4


@dataclass(frozen=True)
class Measurement:
    """Weights that share one preserve set.

    Attributes:
        parameters: their names in the model that trains.
        preserves: whether a training sample belongs to what these weights must preserve.
    """

    parameters: list[str]
    preserves: Callable[[Sample], bool]


@dataclass(frozen=True)
class Recipe:
    """How a variant computes its mask.

    Attributes:
        measurements: the weights to measure, each in one measurement.
        unmasked: parameters whose mask is True everywhere.
        unit: see ``fisher_diagonal``.
        batch_size: samples per batch if it changes the result, else None.
        smooth_numerator: see ``saliency_mask``.
    """

    measurements: list[Measurement]
    unmasked: list[str]
    unit: Literal["sample", "batch"]
    batch_size: int | None
    smooth_numerator: bool


def is_forget(sample: Sample, modalities: Collection[str] = ("multimodal",)) -> bool:
    """Whether a training sample is to be forgotten: it is about a forget person, in one of the modalities."""
    return sample.split == "forget" and sample.modality in modalities


def recipe(
    variant: Variant,
    trained: Iterable[str],
    anatomy: Anatomy,
    *,
    groups: Sequence[str],
    forget: Collection[str] = ("multimodal",),
) -> Recipe:
    """What to measure for a mask on the parameters that train.

    Args:
        variant: ``paper`` or ``official_code``.
        trained: names of the parameters that train; with LoRA its factors.
        anatomy: parts of the model without LoRA.
        groups: parts of the model that may be masked: ``vision``, ``projector``, ``language``.
        forget: modalities of the forget people's samples to forget.

    Raises:
        ModelError: if no parameter that trains is a candidate.
    """
    unused = tuple(f"{layer}." for layer in anatomy.unused)
    names = [name for name in trained if not weight_of(name).startswith(unused)]
    group_of = {name: group for group in groups for name in anatomy.groups[group]}
    inside = {name: group_of[weight_of(name)] for name in names if weight_of(name) in group_of}
    if variant == "paper":
        maskable = set(anatomy.maskable)
        candidates = [name for name in inside if weight_of(name) in maskable]
        measurements = [Measurement(candidates, lambda sample: not is_forget(sample, forget))]
        result = Recipe(measurements, [], "sample", None, smooth_numerator=False)
    else:
        candidates = [name for name in inside if any(part in weight_of(name) for part in OFFICIAL_NAMES)]
        by_tower = {
            _retain_with_pictures: [name for name in candidates if inside[name] != "language"],
            _retain_with_pictures_or_text: [name for name in candidates if inside[name] == "language"],
        }
        measurements = [Measurement(parameters, rule) for rule, parameters in by_tower.items() if parameters]
        unmasked = [name for name in names if name not in set(candidates)]
        result = Recipe(measurements, unmasked, "batch", OFFICIAL_BATCH, smooth_numerator=True)
    if not candidates:
        raise ModelError(
            f"none of the {len(names)} parameters that train ({', '.join(names[:2])}, ...) is a weight that "
            f"the {variant} mask can select in {', '.join(groups)}; select other groups, or train other parts"
        )
    return result


def measure_mask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    anatomy: Anatomy,
    *,
    variant: Variant = "paper",
    groups: Sequence[str] = GROUPS,
    forget: Collection[str] = ("multimodal",),
    threshold: float = 1.0,
    density: float | None = None,
    normalisation: Normalisation = "pooled",
    max_samples: int | None = None,
    batch_size: int = 8,
    storage: Storage = "device",
    seed: int = 0,
) -> tuple[Masks, dict[str, Any]]:
    """Measure both Fisher diagonals of a variant, and compute its mask of the parameters that train.

    Args:
        model: the vanilla model; its ``requires_grad`` flags say which parameters train.
        processor: the model's processor.
        samples: training samples of forget and retain people, in both modalities.
        anatomy: parts of the model without LoRA.
        variant: see ``recipe``, like ``groups`` and ``forget``.
        threshold: see ``saliency_mask``.
        density: share of the weights measured together to select instead; None selects by ``threshold``.
        normalisation: ``pooled`` divides a Fisher diagonal by all samples of its set; ``per_group`` that of
            vision and projector by those with a picture, since text gives them no gradient.
        max_samples: samples drawn from each set; None takes all.
        batch_size: samples per forward pass; does not change the ``paper`` variant.
        storage: see ``fisher_diagonal``.
        seed: draws the samples.

    Returns:
        The masks, and metadata: ``density`` (``Masks.density``, without unmasked parameters), ``thresholds``
        (one per measurement), ``unmasked`` (names of parameters whose mask is True everywhere) and
        ``stability``: Cohen's ``kappa`` of the masks of two halves of the samples and their ``densities``,
        for large models over evenly spaced weights; None if a set has a single sample.

    Raises:
        DataError: if a set has no sample.
        ModelError: if no parameter that trains is a candidate, or no weight is salient.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    plan = recipe(variant, trained, anatomy, groups=groups, forget=forget)
    pictured = {name for group in ("vision", "projector") for name in anatomy.groups[group]}
    size, smooth = plan.batch_size or batch_size, plan.smooth_numerator
    masks, halves, thresholds = Masks(), [Masks(), Masks()], []
    for measurement in plan.measurements:
        sets = {
            "forget": [sample for sample in samples if is_forget(sample, forget)],
            "preserve": [sample for sample in samples if measurement.preserves(sample)],
        }
        diagonals = []  # for each set, those of all its samples and of each half
        for label, members in sets.items():
            if not members:
                raise DataError(f"the {label} set has no training sample")
            encoder, indices = Encoder(processor, members), draw(len(members), max_samples, seed)
            squares = SquaredGradients(
                model, parameters=measurement.parameters, unit=plan.unit, storage=storage
            )
            diagonals.append(_fishers(squares, encoder, indices, size, f"Fisher, {label}"))
            if normalisation == "per_group":
                with_picture = [i for i in indices if members[i].modality == "multimodal"]
                unit = 1 if plan.unit == "sample" else size
                factor = encoder.count(unit, indices) / max(1, encoder.count(unit, with_picture))
                for diagonal in diagonals[-1]:
                    for name, value in diagonal.items():
                        value.mul_(factor if weight_of(name) in pictured else 1)
        whole, *parts = zip(*diagonals, strict=False)
        if variant == "paper":
            followers = set.union(*map(_let_lora_a_follow_b, whole))
            parts = [tuple(_without(half, followers) for half in pair) for pair in parts]
        if density is not None:
            threshold = ratio_threshold(*whole, density=density, smooth_numerator=smooth)
        thresholds.append(threshold)
        masks |= saliency_mask(*whole, threshold=threshold, smooth_numerator=smooth)
        halves = [
            half | saliency_mask(*pair, threshold=threshold, density=density, smooth_numerator=smooth)
            for half, pair in zip(halves, parts, strict=False)
        ]
    if not masks.any():
        raise ModelError(
            f"no weight is {threshold} times as salient for the forget set as for the rest, so the mask "
            "would be empty; lower the threshold"
        )
    metadata = {
        "density": masks.density(anatomy),
        "thresholds": thresholds,
        "unmasked": plan.unmasked,
        "stability": _stability(*halves) if len(halves) == 2 else None,
    }
    everywhere = {n: torch.ones(model.get_parameter(n).shape, dtype=torch.bool) for n in plan.unmasked}
    return masks | Masks(everywhere), metadata


def _fishers(
    squares: SquaredGradients, encoder: Encoder, indices: list[int], size: int, label: str
) -> list[dict[str, Tensor]]:
    """The Fisher diagonal of a set, and those of its halves at the weights of ``SquaredGradients.sample``;
    without the halves if one is empty."""
    sums, counts = [], []
    for half in (0, 1):
        if squares.unit == "sample":
            batches = encoder.batches(size, indices[half::2], label=label, share=share)
        else:  # halves of the batches, which must stay unchanged
            every_other = functools.partial(_every_other, half)
            batches = encoder.batches(size, indices, label=label, share=every_other)
        squares.add(batches)
        values, count = squares.sample()
        sums.append(values)
        counts.append(count)
    whole = squares.mean()
    if not 0 < counts[0] < counts[1]:
        return [whole]
    first = {name: value / counts[0] for name, value in sums[0].items()}
    second = {name: (value - sums[0][name]) / (counts[1] - counts[0]) for name, value in sums[1].items()}
    return [whole, first, second]


def _let_lora_a_follow_b(fisher: dict[str, Tensor]) -> set[str]:
    """Set each row of a LoRA factor A, in place, to the mean of the column of B that it multiplies.

    The factors start with B = 0, so A has no gradient on any sample and would never be selected. A's row and
    B's column together are one rank of the update. Returns the names of these A.
    """
    followers = set()
    for name, value in fisher.items():
        columns = fisher.get(name.replace(".lora_A.", ".lora_B."))
        if ".lora_A." in name and columns is not None and not value.any():
            ranks = columns.transpose(0, 1).flatten(1).mean(dim=1)
            value.copy_(ranks.view(-1, *[1] * (value.dim() - 1)).expand_as(value))
            followers.add(name)
    return followers


def _without(fisher: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in fisher.items() if name not in names}


def _every_other(half: int, batches: list[list[int]]) -> list[list[int]]:
    return share(batches[half::2])


def _stability(first: Masks, second: Masks) -> dict[str, Any]:
    shares = [
        sum(int(mask.sum()) for mask in half.values()) / sum(mask.numel() for mask in half.values())
        for half in (first, second)
    ]
    return {"kappa": kappa(first, second), "densities": shares}


def _retain_with_pictures(sample: Sample) -> bool:
    return sample.split == "retain" and sample.modality == "multimodal"


def _retain_with_pictures_or_text(sample: Sample) -> bool:
    return sample.modality == "text" or sample.split == "retain"
