"""UNDIAL: self-distillation towards the original model with its answers made less likely.

    L_forget = CE( softmax(z_ref - beta 1[y_t]), softmax(z) )      mean over the answer's positions

The logit of each gold token is lowered by beta, and the model learns the resulting distribution, which gives
the loss a floor by construction.

Reference:
    Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language
    Models", arXiv:2402.10052, equations 2 to 4. The released code averages over prompts too.
"""

import math
from dataclasses import dataclass

from torch import nn

from efface.encoding import IGNORED
from efface.encoding.answers import log_probs_of
from efface.encoding.forward import forward
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_distributions, distributions_of, mean_over_samples
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class UndialSettings(TrainingSettings):
    """Settings of UNDIAL."""

    learning_rate: float = 1.6e-4
    beta: float = 10.0
    """How far the logit of an answer token is lowered, above 0; 10 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")


def forget_loss(model: nn.Module, batch: Batch, settings: UndialSettings) -> Term:
    """UNDIAL's forget term; a sample's reference is log p_ref, (tokens, V), equivalent to its logits."""
    labels = batch.inputs["labels"]
    logits = forward(model, batch.inputs).logits
    costs = []
    for before, now, row in zip(
        batch.reference, distributions_of(logits, labels), labels[:, 1:], strict=True
    ):
        gold = row[row != IGNORED].unsqueeze(1)
        lowered = before.scatter_add(1, gold, before.new_full(gold.shape, -float(settings.beta)))
        costs.append(-(lowered.softmax(dim=-1) * now).sum(dim=-1))
    return Term(loss=mean_over_samples(costs), nll=log_probs_of(logits, labels).nll.detach())


METHOD = Method(
    name="undial",
    paper="arXiv:2402.10052",
    forget_loss=forget_loss,
    forget_reference=answer_distributions,
    settings=UndialSettings,
)
