"""MMUnlearner's mask as the paper defines it and as the released code computes it: what is measured on whom.

| | ``paper`` | ``official_code`` |
|---|---|---|
| squared | each sample's gradient | the gradient of each batch of 4 |
| preserved by vision and projector | forget in words, retain in both | retain with pictures |
| preserved by language | the same | retain with pictures, everybody in words |
| no gradient in either set | not salient | salient |
| candidates in the chosen groups | linear and convolutional layers | names with proj, fc, linear, mlp, qkv |
| all other weights | no forget gradient | the whole forget gradient |

In both the forget set is the forget people with their pictures. The released code asks the evaluation's
questions and computes in half precision; neither is reproduced.

Reference:
    Huo et al., "MMUnlearner", arXiv:2502.11051.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from efface.data.samples import Sample
from efface.errors import ModelError
from efface.models.lora import weight_of

if TYPE_CHECKING:
    from efface.models import Anatomy

Variant = Literal["paper", "official_code"]
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
    """How a variant makes its mask.

    Attributes:
        measurements: the weights to measure; no weight is in two.
        unmasked: parameters whose mask is True everywhere.
        unit: see ``fisher_diagonal``.
        batch_size: samples per batch where it matters to the result, else None.
        smooth_numerator: see ``saliency_mask``.
    """

    measurements: list[Measurement]
    unmasked: list[str]
    unit: Literal["sample", "batch"]
    batch_size: int | None
    smooth_numerator: bool


def is_forget(sample: Sample) -> bool:
    """Whether a training sample shows a forget person's picture: the set both variants forget."""
    return sample.split == "forget" and sample.modality == "multimodal"


def recipe(variant: Variant, trained: Iterable[str], anatomy: Anatomy, *, groups: Sequence[str]) -> Recipe:
    """What to measure for a mask on the parameters that train.

    Args:
        variant: ``paper`` or ``official_code``.
        trained: names of the parameters that train; with LoRA its factors.
        anatomy: parts of the model without LoRA.
        groups: parts of the model that may be masked: ``vision``, ``projector``, ``language``.

    Raises:
        ModelError: if no parameter that trains is a candidate.
    """
    names = list(trained)
    owner = {name: group for group in groups for name in anatomy.groups[group]}
    inside = {name: owner[weight_of(name)] for name in names if weight_of(name) in owner}
    if variant == "paper":
        maskable = set(anatomy.maskable)
        chosen = [name for name in inside if weight_of(name) in maskable]
        found = Recipe([Measurement(chosen, _all_but_forget)], [], "sample", None, False)
    else:
        chosen = [name for name in inside if any(part in weight_of(name) for part in OFFICIAL_NAMES)]
        seeing = [name for name in chosen if inside[name] != "language"]
        measurements = [
            Measurement(seeing, _retain_pictures),
            Measurement([name for name in chosen if inside[name] == "language"], _retain_pictures_and_words),
        ]
        unmasked = _without(names, chosen)
        measured = [entry for entry in measurements if entry.parameters]
        found = Recipe(measured, unmasked, "batch", OFFICIAL_BATCH, True)
    if not chosen:
        raise ModelError(
            f"none of the {len(names)} parameters that train ({', '.join(names[:2])}, ...) is a weight that "
            f"the {variant} mask can select in {', '.join(groups)}; choose other groups, or train other parts"
        )
    return found


def _without(names: Iterable[str], chosen: Collection[str]) -> list[str]:
    taken = set(chosen)
    return [name for name in names if name not in taken]


def _all_but_forget(sample: Sample) -> bool:
    return not is_forget(sample)


def _retain_pictures(sample: Sample) -> bool:
    return sample.split == "retain" and sample.modality == "multimodal"


def _retain_pictures_and_words(sample: Sample) -> bool:
    return sample.modality == "text" or sample.split == "retain"
