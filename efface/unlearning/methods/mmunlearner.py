"""MMUnlearner: ascent on the forget set's pictures, through a saliency mask, plus descent on the retain set.

The mask acts on the forget term only, so weights outside it get exactly the retain term's update. It comes
from ``efface.saliency``; the terms are those of gradient difference.

    paper            theta <- theta - eta ( -m * grad L_forget + grad L_retain ), one step
    official_code    a forget step, then a retain step: separate AdamW steps that share their moments. A
                     forget step comes every max(1, retain batches // forget batches) iterations until the
                     epoch's forget batches are used up. Gradients are clipped before they are masked. An
                     epoch is a pass over the retain set.

Reference:
    Huo et al., "MMUnlearner", arXiv:2502.11051, equation of the masked update, and the code released with it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from efface.unlearning.method import Method
from efface.unlearning.settings import Clip, TrainingSettings, require

Variant = Literal["paper", "official_code"]


@dataclass(frozen=True, kw_only=True)
class MMUnlearnerSettings(TrainingSettings):
    """Settings of MMUnlearner."""

    learning_rate: float = 8.0e-5
    clip: Clip = "apart"
    variant: Variant = "paper"
    """``paper``: one step on both gradients. ``official_code``: forget and retain steps take turns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        variants = get_args(Variant)
        require(self.variant in variants, "variant", self.variant, f"one of: {', '.join(variants)}")

    @property
    def alternating(self) -> bool:
        """True in the released code."""
        return self.variant == "official_code"


METHOD = Method(name="mmunlearner", paper="arXiv:2502.11051", settings=MMUnlearnerSettings)
