"""KVW: shrink the MLP columns that the forget answers use more than the retain answers do; nothing trains.

With a the values of a decoder MLP's neurons, over the positions t from which an answer token is predicted:

    c(D)_j = mean over t of |a_tj|
    g_j    = exp( -gamma max( 0, log( c(b)_j + eps ) - log( c(D_r)_j + eps ) ) )           eps = 1e-12
    W_down[:, j] <- W_down[:, j] g_j

for each forget batch b in turn, on the model that the previous batches left. A neuron that no forget batch
uses more than the retain set stays unchanged, bit for bit. Only forward passes are needed; the retain set
enters only through c(D_r), which may come from a file.

Reference:
    "Knowledge Vector Weakening", arXiv:2601.21794, and its released code, which weakens layers 1 to 25 of 28;
    by default all layers are weakened here, and the seed determines the order of the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.encoding import Encoder, to_device
from efface.models.mlps import down_weight
from efface.neurons.retained import decoder_mlps, layers_between, pooled_neurons
from efface.unlearning.method import Job, Method
from efface.unlearning.settings import require
from efface.unlearning.training.batch_source import EpochSampler

EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class KVWSettings:
    """Settings of KVW; nothing trains."""

    gamma: float = 0.005
    """Strength, at least 0; 0 changes nothing. 0.02 in the paper, with a range of 0.01 to 0.03. Its effect
    grows with the number of batches."""
    passes: int = 1
    """Passes over the forget set, at least 1; 1 in the paper."""
    batch_size: int = 1
    """Forget samples between two changes of the weights, at least 1; 1 in the paper."""
    first_layer: int = 1
    """First decoder layer that changes, counted from 1."""
    last_layer: int | None = None
    """Last one; None: the decoder's last."""

    def __post_init__(self) -> None:
        require(0 <= self.gamma < math.inf, "gamma", self.gamma, "a number from 0 on")
        for key in ("passes", "batch_size", "first_layer"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 on")
        require(
            self.last_layer is None or self.last_layer >= self.first_layer,
            "last_layer",
            self.last_layer,
            "None or a whole number from first_layer on",
        )


@torch.no_grad()
def edit(job: Job) -> None:
    """Weaken the columns, in place.

    Raises:
        ModelError: if the decoder has no MLP block, or fewer layers than the settings say.
    """
    settings: KVWSettings = job.settings
    mlps = layers_between(decoder_mlps(job.model), settings.first_layer, settings.last_layer)
    columns = {mlp.name: down_weight(job.model, mlp) for mlp in mlps}
    device, statistic = next(job.model.parameters()).device, job.statistic
    retained = {name: statistic.mean_abs[name].to(device) for name in columns}
    encoder = Encoder(job.processor, job.forget)
    sampler = EpochSampler(job.forget, batch_size=settings.batch_size, seed=job.config.seed)
    for position in range(settings.passes * sampler.batches_per_epoch):
        batch = to_device(encoder.batch(sampler.indices_at(position)), device)
        sums, counts = pooled_neurons(job.model, batch, mlps)
        for name, weight in columns.items():
            forgotten = sums[name][:, 0].sum(dim=0) / counts[:, 0].sum()
            weight.mul_(weakening(forgotten, retained[name], settings.gamma))


def weakening(forgotten: Tensor, retained: Tensor, gamma: float) -> Tensor:
    """Factors in (0, 1] for neurons with these mean absolute values; 1 if the retain set's is higher."""
    excess = ((forgotten + EPS).log() - (retained + EPS).log()).clamp(min=0)
    return (-gamma * excess).exp()


METHOD = Method(
    name="kvw", paper="arXiv:2601.21794", settings=KVWSettings, edit=edit, statistic=True, lora=False
)
