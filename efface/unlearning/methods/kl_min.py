"""KL minimisation: ascent on the forget set, while the retain answers keep their distributions.

    L_retain = KL( p_ref || p )      over the whole vocabulary, mean over the answer's positions

Reference:
    Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121; as a baseline in
    MLLMU-Bench, arXiv:2410.22108. The released codes take the divergence on prompts too; here it is taken
    at the answers, like every other loss.
"""

from dataclasses import dataclass

from efface.unlearning.method import Method, kl_loss
from efface.unlearning.quantities import answer_distributions
from efface.unlearning.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class KLMinSettings(TrainingSettings):
    """Settings of KL minimisation."""

    learning_rate: float = 3.5e-5


METHOD = Method(
    name="kl_min",
    paper="arXiv:2401.06121",
    retain_loss=kl_loss,
    retain_reference=answer_distributions,
    settings=KLMinSettings,
)
