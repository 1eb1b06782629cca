"""KL minimisation: ascent on the forget set while the retain answers keep their distributions.

    L_retain = KL( p_ref || p )      over the whole vocabulary, mean over the answer's positions

Reference:
    Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121; as a baseline in
    MLLMU-Bench, arXiv:2410.22108. The released codes take the divergence on prompts too; here it is taken
    where answers are, as every other loss is.
"""

from torch import nn

from efface.encoding.answers import log_probs_of
from efface.encoding.forward import forward
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import answer_distributions, distributions_of, mean_over_samples
from efface.unlearning.settings import TrainingSettings


def retain_loss(model: nn.Module, batch: Batch, settings: TrainingSettings) -> Term:
    """Divergence from the model before unlearning; a sample's reference is log p_ref, (tokens, V)."""
    labels = batch.inputs["labels"]
    logits = forward(model, batch.inputs).logits
    divergences = [
        (before.exp() * (before - now)).sum(dim=-1)
        for before, now in zip(batch.reference, distributions_of(logits, labels), strict=True)
    ]
    return Term(loss=mean_over_samples(divergences), nll=log_probs_of(logits, labels).nll.detach())


METHOD = Method(
    name="kl_min", paper="arXiv:2401.06121", retain_loss=retain_loss, retain_reference=answer_distributions
)
