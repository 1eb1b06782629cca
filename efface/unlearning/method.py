"""What an unlearning method is: its loss terms, or its edit of the model, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import Inputs
from efface.encoding.answers import answer_log_probs
from efface.unlearning.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class Batch:
    """What a loss reads.

    Attributes:
        inputs: padded model inputs with ``labels`` (B, T).
        reference_values: the method's reference quantity of each of the B samples, computed with the model
            before unlearning; None if the method needs none.
        alternative: the same questions with the method's alternative answers; None if it has none.
        seed: seed of the run, for what a method draws once.
    """

    inputs: Inputs
    reference_values: Sequence[Tensor] | None = None
    alternative: Batch | None = None
    seed: int = 0

    @property
    def reference(self) -> Sequence[Tensor]:
        """The reference values.

        Raises:
            ValueError: if the batch has none.
        """
        if self.reference_values is None:
            raise ValueError(
                "reference_values is None: this loss compares with the model before unlearning and needs one "
                "tensor per sample"
            )
        return self.reference_values


@dataclass(frozen=True)
class Term:
    """A forget or retain term on one batch.

    Attributes:
        loss: what is minimised, a scalar.
        nll: negative log-likelihood of the answers in nats per token, (B,), for logs and stop rules.
    """

    loss: Tensor
    nll: Tensor


Loss = Callable[[nn.Module, Batch, Any], Term]
"""The term of a batch, given model, batch and the method's settings."""
Quantity = Callable[[nn.Module, Inputs, Any], list[Tensor]]
"""What a loss reads of the model before unlearning: one float32 tensor per sample, whatever the batch."""
AlternativeAnswers = Callable[[Sequence[Sample], int], list[Sample]]
Edit = Callable[["PreTrainedModel", "ProcessorMixin", Any], None]


def nll_loss(model: nn.Module, batch: Batch, settings: Any) -> Term:
    """Descent on the answers: the loss is the mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=answers.nll.mean(), nll=answers.nll.detach())


def ascent_loss(model: nn.Module, batch: Batch, settings: Any) -> Term:
    """Gradient ascent on the answers: the loss is the negated mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=-answers.nll.mean(), nll=answers.nll.detach())


@dataclass(frozen=True)
class Method:
    """An unlearning method: one that trains has a term for the forget and the retain set; else it is an edit.

    Attributes:
        name: that of its file.
        paper: where it comes from.
        settings: dataclass of the method's settings; of a method that trains, a ``TrainingSettings``.
        forget_loss: the term of the forget set.
        retain_loss: the term of the retain set; None for a method that ignores the retain set.
        forget_reference: what the forget term reads of the model before unlearning; None for nothing.
        retain_reference: the same for the retain term.
        alternative_answers: for each forget sample the same question with another answer, drawn with a seed;
            the forget loss finds them in ``batch.alternative``. None: there are none.
        edit: what is done to model and processor instead of training; None for a method that trains.
    """

    name: str
    paper: str
    settings: type[Any] = TrainingSettings
    forget_loss: Loss = ascent_loss
    retain_loss: Loss | None = nll_loss
    forget_reference: Quantity | None = None
    retain_reference: Quantity | None = None
    alternative_answers: AlternativeAnswers | None = None
    edit: Edit | None = None

    @property
    def trains(self) -> bool:
        """Whether the method trains; otherwise it edits the model."""
        return self.edit is None
