"""SimNPO: negative preference optimisation without a reference model, by the mean over an answer's tokens.

    L_forget = -(2 / beta) E log sigmoid( -(beta / |y|) log p(y|x) - delta )

Dividing by the length keeps long answers from taking over; the margin delta replaces the reference.

Reference:
    Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
    arXiv:2410.07163, equation 4 (its gamma is our delta).
"""

from torch import nn
from torch.nn.functional import logsigmoid

from efface.encoding.answers import answer_log_probs
from efface.settings import Settings
from efface.unlearning.method import Batch, Method, Term

SETTINGS = {
    "beta": {"type": "number", "exclusiveMinimum": 0},  # inverse temperature; 4.5 in the paper
    "delta": {"type": "number", "minimum": 0},  # margin, nats per token; 0 in the paper
}


def forget_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """SimNPO's forget term."""
    answers = answer_log_probs(model, batch.inputs)
    beta, delta = settings["beta"], settings["delta"]
    loss = -(2 / beta) * logsigmoid(beta * answers.nll - delta).mean()
    return Term(loss=loss, nll=answers.nll.detach())


METHOD = Method(name="simnpo", paper="arXiv:2410.07163", forget_loss=forget_loss, settings=SETTINGS)
