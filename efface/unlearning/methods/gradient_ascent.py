"""Gradient ascent: raise the loss on the forget set, and nothing else.

Reference:
    Thudi et al., "Unrolling SGD", arXiv:2109.13398; as a baseline in MLLMU-Bench, arXiv:2410.22108.
    It has no floor and diverges until a stop rule of the loop ends it.
"""

from dataclasses import dataclass

from efface.unlearning.method import Method
from efface.unlearning.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class GradientAscentSettings(TrainingSettings):
    """Settings of gradient ascent; the retain set is not used."""

    epochs: int = 1
    learning_rate: float = 4.2e-5
    retain_weight: float = 0.0
    retain_batches_per_forget_batch: int = 0


METHOD = Method(
    name="gradient_ascent",
    paper="arXiv:2109.13398",
    settings=GradientAscentSettings,
    retain_loss=None,
    reads=("forget",),
)
