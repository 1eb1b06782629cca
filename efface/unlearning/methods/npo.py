"""Negative preference optimisation: push the forget answers below the model before unlearning, with a floor.

    L_forget = -(2 / beta) E log sigmoid( -beta [ log p(y|x) - log p_ref(y|x) ] )

with log-probabilities summed over the answer. At p = p_ref it is (2 / beta) log 2, with the gradient of
gradient ascent on the sum; the gradient fades as the answers become unlikely.

Reference:
    Zhang et al., "Negative Preference Optimization", arXiv:2404.05868, equation 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import answer_log_probs
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_totals
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class NPOSettings(TrainingSettings):
    """Settings of NPO."""

    learning_rate: float = 3.5e-5
    beta: float = 0.4
    """Inverse temperature, above 0; 0.1 in the paper, 0.4 in MLLMU-Bench."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")


def forget_loss(model: nn.Module, batch: Batch, settings: NPOSettings) -> Term:
    """NPO's forget term; the reference of a sample is log p_ref(y|x)."""
    reference = torch.stack(list(batch.reference))
    answers = answer_log_probs(model, batch.inputs)
    beta = settings.beta
    loss = -(2 / beta) * logsigmoid(-beta * (answers.total - reference)).mean()
    return Term(loss=loss, nll=answers.nll.detach())


METHOD = Method(
    name="npo",
    paper="arXiv:2404.05868",
    forget_loss=forget_loss,
    forget_reference=answer_totals,
    settings=NPOSettings,
)
