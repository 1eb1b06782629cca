"""MIP-Editor: find one path of neurons through each tower that carries the forget facts, cut and retrain it.

    text:    IGI(w) = sum_n w_n sum_{k=1..m} dF( (k/m) w ) / dw_n          F = p(answer | question)
    vision:  IFI(z) = sum_n z_n sum_{k=1..m} ( dG( (k/m) z ) / dz_n )^2    G = log p(answer | ...)

w and z are values of MLP neurons at positions n. Layer by layer the k neurons with the highest sum over the
forget samples join the path, while the neurons of the path so far are scaled by k/m as well. Then the path's
outgoing weights become 0, and only its neurons' weights train:

    v  = lambda || h_l_ref || u                                            u: a unit vector, drawn once
    L  = E_f || h_l - v ||^2 + gamma E_r || h_l - h_l_ref ||^2             gamma = ``retain_weight``

Decisions of this implementation: all neurons of a layer are scaled together, so that one pass scores them
all; the text path comes from text facts if there are any to forget, else from those with pictures; and ||h||
is taken at each picture and answer position, as in RMU.

Reference:
    "MIP-Editor", AAAI 2026, arXiv:2511.06793. The released code departs from the paper and from this file:
    it attributes at one position, uses the first sample's path for all, steers to a fixed random target
    that ignores the length of h, and its NPO baseline trains on the retain set alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import Encoder, Inputs, draw, to_device
from efface.encoding.answers import answer_log_probs, log_probs_of
from efface.encoding.forward import separable
from efface.errors import DataError, ModelError
from efface.models.anatomy import MLP, anatomy
from efface.models.mlps import down_weight, neuron_entries
from efface.neurons.statistics import measuring_mode
from efface.unlearning.method import Batch, Job, Method, Term
from efface.unlearning.methods.rmu import retain_loss
from efface.unlearning.quantities import forward_with_states, hidden_states, mean_over_samples
from efface.unlearning.settings import TrainingSettings, require
from efface.unlearning.training.config import TrainingResult
from efface.unlearning.training.gradients import training_only

Path = dict[str, Tensor]
"""MLP name -> indices of its neurons on the path."""


@dataclass(frozen=True, kw_only=True)
class MIPEditorSettings(TrainingSettings):
    """Settings of MIP-Editor."""

    epochs: int = 1
    learning_rate: float = 1.0e-3
    neurons_per_layer: int = 10
    """Neurons of each layer that join the path (k), at least 1; 5 in the released code."""
    path_steps: int = 4
    """Points of the path integral (m), at least 1; 4 in the released code."""
    path_samples: int = 32
    """Forget samples that determine each tower's path, at least 1."""
    layer: int = 2
    """Decoder layer whose hidden states are steered, counted from 1; 7 in the released code."""
    scale: float = 10.0
    """Length of the target relative to the hidden state's (lambda), above 0; 10 in the released code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("neurons_per_layer", "path_steps", "path_samples", "layer"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 on")
        require(0 < self.scale < math.inf, "scale", self.scale, "a number above 0")
        require(self.weight_decay == 0, "weight_decay", self.weight_decay, "0: only the path may move")


def edit(job: Job) -> TrainingResult:
    """Find the paths, cut them, and train their neurons.

    Raises:
        ModelError: if a tower has no plain MLP block or too few neurons, or the decoder no such layer.
        DataError: if no sample to forget has a picture.
    """
    settings: MIPEditorSettings = job.settings
    towers = {tower: _plain(job.model, tower) for tower in ("language", "vision")}
    layers = max(mlp.layer for mlp in towers["language"]) + 1
    if settings.layer > layers:
        raise ModelError(f"layer is {settings.layer}: expected 1 to {layers}, the layers of the decoder")
    for mlp in (mlp for mlps in towers.values() for mlp in mlps):
        if settings.neurons_per_layer > mlp.width:
            raise ModelError(
                f"neurons_per_layer is {settings.neurons_per_layer} and {mlp.name} has {mlp.width} neurons: "
                "expected at most as many"
            )
    pictured = [sample for sample in job.forget if sample.image_bytes is not None]
    written = [sample for sample in job.forget if sample.image_bytes is None]
    if not pictured:
        raise DataError(
            "no sample to forget has a picture: mip_editor needs some for the path of the vision tower"
        )
    path = find_path(job, written or pictured, towers["language"]) | find_path(
        job, pictured, towers["vision"]
    )
    blocks = {mlp.name: mlp for mlps in towers.values() for mlp in mlps}
    masks = _masks(job.model, blocks, path)
    with ExitStack() as stack:
        stack.enter_context(training_only(job.model, masks))
        for name, mask in masks.items():
            parameter = job.model.get_parameter(name)
            if parameter.requires_grad:
                stack.callback(parameter.register_hook(functools.partial(torch.mul, mask)).remove)
        result = job.train(job.forget, job.retain, begin=functools.partial(cut, job.model, blocks, path))
    return replace(result, details={"path": {name: units.tolist() for name, units in path.items()}})


def find_path(job: Job, samples: Sequence[Sample], mlps: Sequence[MLP]) -> Path:
    """The path through a tower's MLPs, from drawn samples."""
    settings: MIPEditorSettings = job.settings
    device = next(job.model.parameters()).device
    subset = [samples[i] for i in draw(len(samples), settings.path_samples, job.config.seed)]
    encoder = Encoder(job.processor, subset)
    path: Path = {}
    for mlp in mlps:
        score = torch.zeros(mlp.width, device=device)
        for batch in encoder.batches(job.config.batch_size):
            inputs = to_device(batch, device)
            score += attribution(job.model, inputs, mlp, path, mlps, settings.path_steps)
        path[mlp.name] = score.topk(settings.neurons_per_layer).indices.sort().values
    return path


def attribution(
    model: nn.Module, inputs: Inputs, mlp: MLP, path: Mapping[str, Tensor], mlps: Sequence[MLP], steps: int
) -> Tensor:
    """IGI (decoder) or IFI (vision tower) of every neuron of a block, summed over the samples, (N,).

    Args:
        model: a multimodal LLM.
        inputs: padded samples with ``labels``.
        mlp: the block.
        path: the path through the blocks before it.
        mlps: the blocks of its tower.
        steps: points of the path integral (m).
    """
    down = {block.name: model.get_submodule(block.down) for block in mlps}
    total = torch.zeros(mlp.width, device=inputs["input_ids"].device)
    with measuring_mode(model):
        for part in separable(model, inputs):
            values: dict[str, Tensor] = {}
            with torch.no_grad(), ExitStack() as stack:
                for name in (*path, mlp.name):
                    save = functools.partial(_save, values, name)
                    stack.callback(down[name].register_forward_pre_hook(save).remove)
                answer_log_probs(model, part)
            if mlp.name not in values:  # text bypasses the vision tower
                continue
            value = values[mlp.name]
            for k in range(1, steps + 1):
                leaf = (k / steps * value).requires_grad_()
                with torch.enable_grad(), ExitStack() as stack:
                    for name, units in path.items():
                        scaled = functools.partial(_scale, units, k / steps * values[name])
                        stack.callback(down[name].register_forward_pre_hook(scaled).remove)
                    put = functools.partial(_put, leaf)
                    stack.callback(down[mlp.name].register_forward_pre_hook(put).remove)
                    totals = answer_log_probs(model, part).total
                    goal = totals.exp() if mlp.tower == "language" else totals
                    (gradient,) = torch.autograd.grad(goal.sum(), leaf, allow_unused=True)
                if gradient is not None:
                    slope = gradient if mlp.tower == "language" else gradient.square()
                    total += (value * slope).float().flatten(0, -2).sum(dim=0)
    return total


@torch.no_grad()
def cut(model: nn.Module, blocks: Mapping[str, MLP], path: Mapping[str, Tensor]) -> None:
    """Set the outgoing weights of the path's neurons to zero, in place."""
    for name, units in path.items():
        down_weight(model, blocks[name])[:, units] = 0


def forget_loss(model: nn.Module, batch: Batch, settings: MIPEditorSettings) -> Term:
    """Distance of the hidden states from the target; a sample's reference is h_l_ref, (tokens, H)."""
    output, states = forward_with_states(model, batch.inputs, settings.layer)
    u = direction(states[0].shape[-1], batch.seed).to(states[0].device)
    distances = [
        (h - settings.scale * before.norm(dim=-1, keepdim=True) * u).square().sum(dim=-1)
        for h, before in zip(states, batch.reference, strict=True)
    ]
    nll = log_probs_of(output.logits, batch.inputs["labels"]).nll.detach()
    return Term(loss=mean_over_samples(distances), nll=nll)


def direction(size: int, seed: int) -> Tensor:
    """A vector drawn uniformly from the unit sphere, the same for the same seed, (H,)."""
    entries = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return entries / entries.norm()


def _plain(model: nn.Module, tower: str) -> list[MLP]:
    """A tower's plain MLP blocks, by layer."""
    mlps = [mlp for mlp in anatomy(model).require_mlps() if mlp.tower == tower and mlp.expert is None]
    if not mlps:
        raise ModelError(f"the {tower} part has stacked experts alone: mip_editor expects linear MLP blocks")
    return mlps


def _masks(model: nn.Module, blocks: Mapping[str, MLP], path: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> 1 at the weights of the path's neurons, 0 elsewhere."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    for name, units in path.items():
        for parameter, index in neuron_entries(model, blocks[name], units):
            mask = masks.setdefault(names[id(parameter)], torch.zeros_like(parameter, requires_grad=False))
            mask[index] = 1
    return masks


def _save(values: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    values[name] = args[0].detach().clone()


def _scale(units: Tensor, scaled: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    changed = args[0].clone()
    changed[..., units] = scaled[..., units]
    return (changed, *args[1:])


def _put(leaf: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (leaf, *args[1:])


METHOD = Method(
    name="mip_editor",
    paper="arXiv:2511.06793",
    forget_loss=forget_loss,
    retain_loss=retain_loss,
    forget_reference=hidden_states,
    retain_reference=hidden_states,
    settings=MIPEditorSettings,
    edit=edit,
    lora=False,
)
