"""Direct preference optimisation of a refusal ("I do not know") over the forget answer.

    L_forget = -E log sigmoid( beta [ r(y_idk) - r(y_forget) ] )      r(y) = log p(y|x) - log p_ref(y|x)

    paper              as above
    open_unlearning    (2 / beta) times that, as in the code of open-unlearning: at beta 0.1 the forget
                       term weighs 20 times as much against the retain term

Reference:
    Rafailov et al., "Direct Preference Optimization", arXiv:2305.18290, equation 7; as a preference for
    refusals in TOFU, arXiv:2401.06121. The code released with CLEAR (arXiv:2410.18057) trains on the gold
    answers instead of refusals; here a refusal that equals its gold answer is an error.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import AnswerLogProbs, answer_log_probs
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_totals
from efface.unlearning.refusals import refusals_for
from efface.unlearning.settings import TrainingSettings, require

Variant = Literal["paper", "open_unlearning"]


@dataclass(frozen=True, kw_only=True)
class IdkDPOSettings(TrainingSettings):
    """Settings of DPO towards refusals."""

    learning_rate: float = 8.0e-5
    beta: float = 0.1
    """Inverse temperature, above 0; 0.1 in both papers."""
    variant: Variant = "paper"
    """``paper``: as published. ``open_unlearning``: 2 / beta times that, as NPO is scaled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")
        variants = get_args(Variant)
        require(self.variant in variants, "variant", self.variant, f"one of: {', '.join(variants)}")


def forget_loss(model: nn.Module, batch: Batch, settings: IdkDPOSettings) -> Term:
    """DPO's term; the reference of a sample is log p_ref of its answer, and of its refusal."""
    if batch.alternative is None:
        raise ValueError("batch.alternative is None: DPO needs a refusal for every forget answer")
    refusal, _ = _log_ratio(model, batch.alternative)
    gold, answers = _log_ratio(model, batch)
    loss = -logsigmoid(settings.beta * (refusal - gold)).mean()
    if settings.variant == "open_unlearning":
        loss = 2 / settings.beta * loss
    return Term(loss=loss, nll=answers.nll.detach())


def _log_ratio(model: nn.Module, batch: Batch) -> tuple[Tensor, AnswerLogProbs]:
    answers = answer_log_probs(model, batch.inputs)
    return answers.total - torch.stack(list(batch.reference)), answers


METHOD = Method(
    name="idk_dpo",
    paper="arXiv:2305.18290",
    forget_loss=forget_loss,
    forget_reference=answer_totals,
    alternatives=lambda samples, settings, seed: refusals_for(samples, seed),
    settings=IdkDPOSettings,
)
