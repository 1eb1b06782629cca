"""Direct preference optimisation of a refusal ("I do not know") over the forget answer.

    L_forget = -E log sigmoid( beta [ r(y_idk) - r(y_forget) ] )      r(y) = log p(y|x) - log p_ref(y|x)

Reference:
    Rafailov et al., "Direct Preference Optimization", arXiv:2305.18290, equation 7; as a preference for
    refusals in TOFU, arXiv:2401.06121. The code released with CLEAR (arXiv:2410.18057) trains on the gold
    answers in the refusals' place; here a refusal that equals its gold answer is an error.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import AnswerLogProbs, answer_log_probs
from efface.settings import Settings
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_totals
from efface.unlearning.refusals import refusals_for

SETTINGS = {"beta": {"type": "number", "exclusiveMinimum": 0}}  # inverse temperature; 0.1 in both papers


def forget_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """DPO's term; the reference of a sample is log p_ref of its answer, and of its refusal."""
    if batch.other is None:
        raise ValueError("DPO needs a refusal for every forget answer: give the batch its `other` answers")
    refused, _ = _log_ratio(model, batch.other)
    known, answers = _log_ratio(model, batch)
    return Term(loss=-logsigmoid(settings["beta"] * (refused - known)).mean(), nll=answers.nll.detach())


def _log_ratio(model: nn.Module, batch: Batch) -> tuple[Tensor, AnswerLogProbs]:
    answers = answer_log_probs(model, batch.inputs)
    return answers.total - torch.stack(list(batch.referenced())), answers


METHOD = Method(
    name="idk_dpo",
    paper="arXiv:2305.18290",
    forget_loss=forget_loss,
    forget_reference=answer_totals,
    other_answers=refusals_for,
    settings=SETTINGS,
)
