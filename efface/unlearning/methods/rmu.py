"""RMU: steer the forget samples' hidden states to a fixed random direction, and hold the retain samples'.

    L_forget = E || h_l - c u ||^2        L_retain = E || h_l - h_l_ref ||^2

h_l is the hidden state after decoder layer l and u a unit vector drawn once with the run's seed. Means are
over picture and answer positions; squared norms are sums over the hidden units.

Reference:
    Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", arXiv:2403.03218,
    section 4. Its code takes means over the hidden units and trains three layers only; here all weights that
    require gradients train.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.encoding.answers import log_probs_of
from efface.unlearning.method import Batch, Method, Term
from efface.unlearning.quantities import forward_with_states, hidden_states, mean_over_samples
from efface.unlearning.settings import TrainingSettings, require


@dataclass(frozen=True, kw_only=True)
class RMUSettings(TrainingSettings):
    """Settings of RMU."""

    learning_rate: float = 6.4e-4
    layer: int = 2
    """Decoder layer, counted from 1; 7 of 32 in the paper."""
    scale: float = 20.0
    """Length of the random target (c), above 0; 6.5 and 300 in the paper, by model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layer >= 1, "layer", self.layer, "a whole number from 1 on")
        require(0 < self.scale < math.inf, "scale", self.scale, "a number above 0")


def forget_loss(model: nn.Module, batch: Batch, settings: RMUSettings) -> Term:
    """Distance of the forget samples' hidden states from the random target."""
    states, nll = _states(model, batch, settings)
    target = settings.scale * direction(states[0].shape[-1], batch.seed).to(states[0].device)
    return Term(loss=mean_over_samples([(h - target).square().sum(dim=-1) for h in states]), nll=nll)


def retain_loss(model: nn.Module, batch: Batch, settings: RMUSettings) -> Term:
    """Distance of the retain samples' hidden states from those of the model before unlearning."""
    states, nll = _states(model, batch, settings)
    moved = [(h - before).square().sum(dim=-1) for h, before in zip(states, batch.reference, strict=True)]
    return Term(loss=mean_over_samples(moved), nll=nll)


def direction(size: int, seed: int) -> Tensor:
    """A unit vector of uniform positive entries, the same for the same seed, (H,)."""
    entries = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return entries / entries.norm()


def _states(model: nn.Module, batch: Batch, settings: RMUSettings) -> tuple[list[Tensor], Tensor]:
    output, states = forward_with_states(model, batch.inputs, settings.layer)
    return states, log_probs_of(output.logits, batch.inputs["labels"]).nll.detach()


METHOD = Method(
    name="rmu",
    paper="arXiv:2403.03218",
    forget_loss=forget_loss,
    retain_loss=retain_loss,
    retain_reference=hidden_states,
    settings=RMUSettings,
)
