"""Direct preference optimisation of a refusal ("I do not know") over the forget answer.

    L_forget = -E log sigmoid( beta [ r(y_idk) - r(y_forget) ] )      r(y) = log p(y|x) - log p_ref(y|x)

Reference:
    Rafailov et al., "Direct Preference Optimization", arXiv:2305.18290, equation 7; as a preference for
    refusals in TOFU, arXiv:2401.06121. The code released with CLEAR (arXiv:2410.18057) trains on the gold
    answers in the refusals' place; here a refusal that equals its gold answer is an error.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import AnswerLogProbs, answer_log_probs
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_totals
from efface.unlearning.refusals import refusals_for
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class IdkDPOSettings(TrainingSettings):
    """Settings of DPO towards refusals."""

    beta: float = 0.1
    """Inverse temperature, above 0; 0.1 in both papers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")


def forget_loss(model: nn.Module, batch: Batch, settings: IdkDPOSettings) -> Term:
    """DPO's term; the reference of a sample is log p_ref of its answer, and of its refusal."""
    if batch.alternative is None:
        raise ValueError("batch.alternative is None: DPO needs a refusal for every forget answer")
    refused, _ = _log_ratio(model, batch.alternative)
    known, answers = _log_ratio(model, batch)
    return Term(loss=-logsigmoid(settings.beta * (refused - known)).mean(), nll=answers.nll.detach())


def _log_ratio(model: nn.Module, batch: Batch) -> tuple[Tensor, AnswerLogProbs]:
    answers = answer_log_probs(model, batch.inputs)
    return answers.total - torch.stack(list(batch.reference)), answers


METHOD = Method(
    name="idk_dpo",
    paper="arXiv:2305.18290",
    forget_loss=forget_loss,
    forget_reference=answer_totals,
    alternative_answers=refusals_for,
    settings=IdkDPOSettings,
)
