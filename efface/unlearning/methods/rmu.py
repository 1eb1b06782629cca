"""RMU: steer the forget samples' hidden states to a fixed random direction, and hold the retain samples'.

    L_forget = E || h_l - c u ||^2        L_retain = E || h_l - h_l_ref ||^2

h_l is the hidden state after decoder layer l and u a unit vector drawn once with the run's seed. Means are
over picture and answer positions; squared norms are sums over the hidden units.

Reference:
    Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", arXiv:2403.03218,
    section 4. Its code takes means over the hidden units and trains three layers only; here the loop trains
    what it is told to.
"""

import torch
from torch import Tensor, nn

from efface.encoding.answers import log_probs_of
from efface.settings import Settings
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import forward, hidden_states, mean_over_samples, states_of

SETTINGS = {
    "layer": {"type": "integer", "minimum": 1},  # decoder layer, counted from 1
    "scale": {"type": "number", "exclusiveMinimum": 0},  # c: length of the target
}


def forget_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """Distance of the forget samples' hidden states from the random target."""
    states, nll = _states(model, batch, settings)
    target = settings["scale"] * direction(states[0].shape[-1], batch.seed).to(states[0].device)
    return Term(loss=mean_over_samples([(h - target).square().sum(dim=-1) for h in states]), nll=nll)


def retain_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """Distance of the retain samples' hidden states from those of the model before unlearning."""
    states, nll = _states(model, batch, settings)
    moved = [(h - before).square().sum(dim=-1) for h, before in zip(states, batch.referenced(), strict=True)]
    return Term(loss=mean_over_samples(moved), nll=nll)


def direction(size: int, seed: int) -> Tensor:
    """A unit vector of uniform positive entries, the same for the same seed, (H,)."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def _states(model: nn.Module, batch: Batch, settings: Settings) -> tuple[list[Tensor], Tensor]:
    output = forward(model, batch.inputs, output_hidden_states=True)
    nll = log_probs_of(output.logits, batch.inputs["labels"]).nll.detach()
    return states_of(model, output, batch.inputs, settings["layer"]), nll


METHOD = Method(
    name="rmu",
    paper="arXiv:2403.03218",
    forget_loss=forget_loss,
    retain_loss=retain_loss,
    retain_reference=hidden_states,
    settings=SETTINGS,
)
