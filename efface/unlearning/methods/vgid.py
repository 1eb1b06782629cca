"""VGID: answer about the forget pictures as the original model does about noise, with a forget instruction.

    p_T = p_ref( . | noise(I), "forget" instruction + q )
    L   = alpha E KL( p_T || p( . | I, q ) )  on D_f   +   beta E KL( p_ref || p )  on D_r

alpha is ``forget_weight`` and beta ``retain_weight``; divergences are over the whole vocabulary, mean over
the answer's positions. A text fact has no picture, so only the instruction can make the teacher forget.
Decisions of this implementation: noise(I) mixes the picture with uniform noise, by default noise alone, and
the wording of the instruction.

Reference:
    "VGID", arXiv:2606.00105.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import nn

from efface.data.samples import Sample
from efface.unlearning.method import Batch, Method, Term, kl_loss
from efface.unlearning.quantities import answer_distributions
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class VGIDSettings(TrainingSettings):
    """Settings of VGID."""

    learning_rate: float = 1.6e-4
    noise: float = 1.0
    """Share of noise in the teacher's picture, in (0, 1]."""
    instruction: str = "You do not know this person."
    """Instruction to the teacher before the question; may be empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.noise <= 1, "noise", self.noise, "a number in (0, 1]")


def forget_loss(model: nn.Module, batch: Batch, settings: VGIDSettings) -> Term:
    """Divergence from the teacher; the reference of the alternative is log p_T, (tokens, V)."""
    if batch.alternative is None:
        raise ValueError("batch.alternative is None: VGID needs its teacher's samples")
    taught = replace(batch, reference_values=batch.alternative.reference)
    return kl_loss(model, taught, settings)


def teacher_samples(samples: Sequence[Sample], settings: VGIDSettings, seed: int) -> list[Sample]:
    """The samples with noise in their pictures and the instruction before their questions."""
    return [
        replace(
            sample,
            image_bytes=None if sample.image_bytes is None else _noisy(sample, settings.noise, seed),
            question=f"{settings.instruction} {sample.question}".strip(),
        )
        for sample in samples
    ]


def _noisy(sample: Sample, share: float, seed: int) -> bytes:
    pixels = np.asarray(sample.images[0], dtype=np.float32)
    chance = np.random.default_rng(random.Random(f"{seed}/{sample.sample_id}").getrandbits(32))
    mixed = (1 - share) * pixels + share * chance.uniform(0, 255, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


METHOD = Method(
    name="vgid",
    paper="arXiv:2606.00105",
    forget_loss=forget_loss,
    retain_loss=kl_loss,
    forget_reference=answer_distributions,
    retain_reference=answer_distributions,
    alternatives=teacher_samples,
    settings=VGIDSettings,
)
