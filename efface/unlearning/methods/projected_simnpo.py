"""Projected SimNPO: SimNPO's bounded forget term in place of the ascent of projected difference.

The change of the decoder is that of ``projected_diff``, the forget term that of ``simnpo``. Facts asked in
words stay if the retain set holds them as text (``retain_text`` of an entry of ``unlearn.methods``): the
protected span then includes them.

Reference:
    This project's combination of SimNPO (arXiv:2410.07163), the projection of VL-Eraser (CVPR 2026) and
    MMUnlearner's retention of text (arXiv:2502.11051); what it is worth: docs/background/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface.unlearning.method import Method
from efface.unlearning.methods import projected_diff, simnpo
from efface.unlearning.settings import require


@dataclass(frozen=True, kw_only=True)
class ProjectedSimNPOSettings(simnpo.SimNPOSettings):
    """Settings of projected SimNPO: those of SimNPO, and the protected span's."""

    learning_rate: float = 2.0e-3
    energy: float = 0.9
    """Share of the retain inputs' squared length that the protected span holds, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.energy <= 1, "energy", self.energy, "a number in [0, 1]")


METHOD = Method(
    name="projected_simnpo",
    paper="this project",
    forget_loss=simnpo.forget_loss,
    settings=ProjectedSimNPOSettings,
    edit=projected_diff.edit,
    statistic=True,
    lora=False,
)
