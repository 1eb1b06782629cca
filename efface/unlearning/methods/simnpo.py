"""SimNPO: negative preference optimisation without a reference model, by the mean over an answer's tokens.

    L_forget = -(2 / beta) E log sigmoid( -(beta / |y|) log p(y|x) - delta )

Dividing by the length keeps long answers from taking over; the margin delta replaces the reference.

Reference:
    Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
    arXiv:2410.07163, equation 4 (its gamma is our delta).
"""

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import answer_log_probs
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class SimNPOSettings(TrainingSettings):
    """Settings of SimNPO."""

    learning_rate: float = 6.0e-5
    beta: float = 2.5
    """Inverse temperature, above 0; 4.5 in the paper."""
    delta: float = 0.0
    """Margin in nats per token, at least 0; 0 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")
        require(0 <= self.delta < math.inf, "delta", self.delta, "a number from 0 on")


def forget_loss(model: nn.Module, batch: Batch, settings: SimNPOSettings) -> Term:
    """SimNPO's forget term."""
    answers = answer_log_probs(model, batch.inputs)
    beta, delta = settings.beta, settings.delta
    loss = -(2 / beta) * logsigmoid(beta * answers.nll - delta).mean()
    return Term(loss=loss, nll=answers.nll.detach())


METHOD = Method(name="simnpo", paper="arXiv:2410.07163", forget_loss=forget_loss, settings=SimNPOSettings)
