"""Negative preference optimisation: push the forget answers below the model before unlearning, with a floor.

    L_forget = -(2 / beta) E log sigmoid( -beta [ log p(y|x) - log p_ref(y|x) ] )

with log-probabilities summed over the answer. At p = p_ref it is (2 / beta) log 2 and its gradient is that of
gradient ascent on the sum; the gradient fades as the answers become unlikely.

Reference:
    Zhang et al., "Negative Preference Optimization", arXiv:2404.05868, equation 3.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from efface.data.encoding import Inputs
from efface.models.answers import answer_log_probs
from efface.unlearning.method import ForgetTerm, Method


def forget_loss(
    model: nn.Module, forget: Inputs, reference: Tensor | None, settings: Mapping[str, float]
) -> ForgetTerm:
    """NPO's forget term; ``reference`` holds log p_ref(y|x) of the batch, shape (B,)."""
    if reference is None:
        raise ValueError(
            "NPO needs the log-probabilities of the forget answers under the model before unlearning"
        )
    answers = answer_log_probs(model, forget)
    beta = settings["beta"]
    loss = -(2 / beta) * logsigmoid(-beta * (answers.total - reference)).mean()
    return ForgetTerm(loss=loss, nll=answers.nll.detach())


METHOD = Method(
    name="npo", paper="arXiv:2404.05868", forget_loss=forget_loss, needs_reference=True, settings=("beta",)
)
