"""VL-Eraser: a low-rank student learns the forget answers outside the retain set's span, and is subtracted.

For the down projection W of each decoder MLP, with H_r the pooled inputs on the retain set and H_f those on
the forget set:

    P   = I - U^T U                                  U: orthonormal rows that span H_r, so P H_r = 0
    L   = lambda * mean [ 1 - cos( W h, S P h ) ] + (1 - lambda) * L_CE(D_f)      over blocks and h in H_f
    W  <- W - S P                                    S = B A of low rank; W stays while S trains

For an h in the span, (W - S P) h = W h. Under L_CE the student replaces W in every block.

The method follows a description of the paper, whose text was not available. Decisions of this implementation:
the pooled inputs are, per sample, the mean over the positions that predict the answer and the mean over the
others; the span holds a share of the retained energy (1: all of it); and the student starts as the best
approximation of W P of its rank, since a cosine has no gradient at zero.

Reference:
    "VL-Eraser", CVPR 2026. No public code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.encoding import Inputs
from efface.encoding.answers import answer_log_probs
from efface.errors import ModelError
from efface.models.anatomy import MLP
from efface.neurons.retained import RetainStatistic, plain_mlps, pooled_neurons, pooled_rows, span_of
from efface.unlearning.method import Batch, Job, Method, Term
from efface.unlearning.settings import TrainingSettings, require
from efface.unlearning.training.config import TrainingResult
from efface.unlearning.training.gradients import training_beside


@dataclass(frozen=True, kw_only=True)
class VLEraserSettings(TrainingSettings):
    """Settings of VL-Eraser; the retain set enters only through its statistic."""

    learning_rate: float = 2.0e-3
    rank: int = 64
    """Rank of the student, at least 1 and at most the number of directions that the retain set leaves."""
    similarity_weight: float = 0.5
    """Share of the cosine term (lambda), in [0, 1]."""
    energy: float = 0.95
    """Share of the retain inputs' squared length that the protected span holds, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, "rank", self.rank, "a whole number from 1 on")
        require(
            0 <= self.similarity_weight <= 1,
            "similarity_weight",
            self.similarity_weight,
            "a number in [0, 1]",
        )
        require(0 < self.energy <= 1, "energy", self.energy, "a number in (0, 1]")


class Student(nn.Module):
    """The student of one down projection, x -> B A P x; while ``active`` it replaces the projection.

    Args:
        down: the projection, (H, N).
        span: orthonormal rows of the retained span U, (K, N).
        rank: rank of B A.
    """

    span: Tensor

    def __init__(self, down: nn.Linear, span: Tensor, rank: int):
        super().__init__()
        self.active = True
        self._down = [down]  # in a list, so that the projection is not a submodule
        self.register_buffer("span", span, persistent=False)
        weight = down.weight.detach().float()
        left, values, right = torch.linalg.svd(weight - weight @ span.T @ span, full_matrices=False)
        root = values[:rank].sqrt()
        # Contiguous, like the optimizer's moments after a checkpoint is loaded.
        self.b = nn.Parameter((left[:, :rank] * root).contiguous())
        self.a = nn.Parameter((root.unsqueeze(1) * right[:rank]).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """S P x, (..., H)."""
        x = x.float()
        return (x - x @ self.span.T @ self.span) @ self.a.T @ self.b.T

    def cosines(self, rows: Tensor) -> Tensor:
        """cos(W h, S P h) for each row h of (..., N)."""
        weight = self._down[0].weight.detach().float()
        return torch.cosine_similarity(rows @ weight.T, self(rows), dim=-1)

    def replace(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the projection."""
        if not self.active:
            return output
        student = self(args[0]).to(output.dtype)
        return student if module.bias is None else student + module.bias

    @torch.no_grad()
    def subtract(self) -> None:
        """W <- W - S P, in place."""
        student = self.b @ self.a
        self._down[0].weight.sub_(student - student @ self.span.T @ self.span)


def edit(job: Job) -> TrainingResult:
    """Train the students, and subtract them.

    Raises:
        ModelError: if a projection is not a plain linear layer, or the rank exceeds what the retain set
            leaves.
    """
    mlps = plain_mlps(job.model)
    with students(job, mlps, job.statistic) as attached:
        result = job.train(job.forget, [], evaluated=False)
    for student in attached:
        student.subtract()
    return result


@contextmanager
def students(job: Job, mlps: Sequence[MLP], statistic: RetainStatistic) -> Iterator[list[Student]]:
    """Give each block a student; within this context only the students train."""
    settings: VLEraserSettings = job.settings
    spans = {mlp.name: span_of(statistic.span[mlp.name], settings.energy) for mlp in mlps}
    for mlp in mlps:
        free = mlp.width - len(spans[mlp.name])
        if settings.rank > free:
            raise ModelError(
                f"rank is {settings.rank} and the retain set leaves {free} of {mlp.width} directions of "
                f"{mlp.down}: expected a rank up to that; lower rank or energy"
            )
    attached = []
    for mlp in mlps:
        down: Any = job.model.get_submodule(mlp.down)
        attached.append(Student(down, spans[mlp.name].to(down.weight.device), settings.rank))
    with training_beside(job.model, dict(zip((mlp.down for mlp in mlps), attached, strict=True))):
        yield attached


def forget_inputs(model: nn.Module, inputs: Inputs, settings: VLEraserSettings) -> list[Tensor]:
    """H_f of each sample: (2, N of all blocks side by side), with the model's own projections."""
    mlps, attached = plain_mlps(model), students_of(model)
    for student in attached:
        student.active = False
    try:
        sums, counts = pooled_neurons(model, inputs, mlps)
    finally:
        for student in attached:
            student.active = True
    rows = [pooled_rows(sums[mlp.name], counts).unflatten(0, (-1, 2)) for mlp in mlps]
    return list(torch.cat(rows, dim=-1))


def students_of(model: nn.Module) -> list[Student]:
    """The students in a model, in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, Student)]


def forget_loss(model: nn.Module, batch: Batch, settings: VLEraserSettings) -> Term:
    """The students' loss; a sample's reference is its H_f."""
    answers = answer_log_probs(model, batch.inputs)
    attached = students_of(model)
    rows = torch.stack(list(batch.reference)).split([student.a.shape[1] for student in attached], dim=-1)
    cosines = [student.cosines(part) for student, part in zip(attached, rows, strict=True)]
    weight = settings.similarity_weight
    loss = weight * (1 - torch.stack(cosines)).mean() + (1 - weight) * answers.nll.mean()
    return Term(loss=loss, nll=answers.nll.detach())


METHOD = Method(
    name="vl_eraser",
    paper="CVPR 2026",
    forget_loss=forget_loss,
    retain_loss=None,
    forget_reference=forget_inputs,
    settings=VLEraserSettings,
    edit=edit,
    statistic=True,
    lora=False,
)
