"""Gradient difference: ascent on the forget set, descent on the retain set, in one step.

Reference:
    Liu et al., "Continual Learning and Private Unlearning", arXiv:2203.12817. The code released with
    MLLMU-Bench goes through one set after the other; here every step has both terms.
"""

from dataclasses import dataclass

from efface.unlearning.method import Method
from efface.unlearning.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class GradDiffSettings(TrainingSettings):
    """Settings of gradient difference."""

    learning_rate: float = 2.5e-5


METHOD = Method(name="grad_diff", paper="arXiv:2203.12817", settings=GradDiffSettings)
