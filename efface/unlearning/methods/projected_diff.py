"""Projected difference: gradient difference by a change of the decoder's MLPs that the retain set cannot see.

For the down projection W of each decoder MLP, with H_r the pooled inputs on the retain set:

    W'  = W + D P        P = I - U^T U,  U: orthonormal rows that span H_r, so W' h = W h for h in the span
    L   = - L_CE(D_f) + lambda L_CE(D_r)                     lambda = ``retain_weight``; D trains, W stays

Vision tower and projector stay as they are, so putting those of the original model back restores nothing.
With ``energy`` 0 nothing is protected and P = I, the ablation.

Reference:
    This project's combination of gradient difference (arXiv:2203.12817) with the projection of VL-Eraser
    (CVPR 2026); what it is worth: docs/background/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.neurons.retained import plain_mlps, span_of
from efface.unlearning.method import Job, Method
from efface.unlearning.settings import TrainingSettings, require
from efface.unlearning.training.config import TrainingResult
from efface.unlearning.training.gradients import training_beside


@dataclass(frozen=True, kw_only=True)
class ProjectedDiffSettings(TrainingSettings):
    """Settings of projected difference."""

    learning_rate: float = 1.0e-3
    energy: float = 0.9
    """Share of the retain inputs' squared length that the protected span holds, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.energy <= 1, "energy", self.energy, "a number in [0, 1]")


class Change(nn.Module):
    """The change D of one down projection; adds D P x to its output.

    Args:
        down: the projection, (H, N).
        span: orthonormal rows of the protected span U, (K, N).
    """

    span: Tensor

    def __init__(self, down: nn.Linear, span: Tensor):
        super().__init__()
        self._down = [down]  # in a list, so that the projection is not a submodule
        self.register_buffer("span", span, persistent=False)
        self.weight = nn.Parameter(torch.zeros_like(down.weight, dtype=torch.float32))

    def replace(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the projection."""
        x = args[0].float()
        return output + ((x - x @ self.span.T @ self.span) @ self.weight.T).to(output.dtype)

    @torch.no_grad()
    def apply_to_weight(self) -> None:
        """W <- W + D P, in place."""
        self._down[0].weight.add_(self.weight - self.weight @ self.span.T @ self.span)


def edit(job: Job) -> TrainingResult:
    """Train the changes, and add them to the weights.

    Raises:
        ModelError: if a projection is not a plain linear layer.
    """
    statistic, changes = job.statistic, {}
    for mlp in plain_mlps(job.model):
        down: Any = job.model.get_submodule(mlp.down)
        span = span_of(statistic.span[mlp.name], job.settings.energy)
        changes[mlp.down] = Change(down, span).to(down.weight.device)
    with training_beside(job.model, changes):
        result = job.train(job.forget, job.retain)
    for change in changes.values():
        change.apply_to_weight()
    return result


METHOD = Method(
    name="projected_diff",
    paper="this project",
    settings=ProjectedDiffSettings,
    edit=edit,
    statistic=True,
    lora=False,
)
