"""The parts of an unlearning method: its loss terms, or its edit of the model, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import Inputs
from efface.encoding.answers import answer_log_probs, log_probs_of
from efface.encoding.forward import forward
from efface.unlearning.quantities import distributions_of, divergence
from efface.unlearning.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models.lora import Adapter
    from efface.neurons.retained import RetainStatistic
    from efface.unlearning.training.config import TrainingConfig, TrainingResult


@dataclass(frozen=True)
class Batch:
    """The input of a loss.

    Attributes:
        inputs: padded model inputs with ``labels`` (B, T).
        reference_values: the method's reference quantity of each of the B samples, computed with the model
            before unlearning; None if the method needs none.
        alternative: the method's alternatives to the samples, such as the same questions with other answers;
            None if it has none.
        seed: seed of the run, for quantities that a method draws once.
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
        loss: the quantity to minimise, a scalar.
        nll: negative log-likelihood of the answers in nats per token, (B,), for logs and stop rules.
    """

    loss: Tensor
    nll: Tensor


Loss = Callable[[nn.Module, Batch, Any], Term]
"""The term of a batch, given model, batch and the method's settings."""
Quantity = Callable[[nn.Module, Inputs, Any], list[Tensor]]
"""What a loss reads of the model before unlearning: one float32 tensor per sample, independent of batches."""
Alternatives = Callable[[Sequence[Sample], Any, int], list[Sample]]
"""An alternative to each sample, given the method's settings and a seed."""
Set = Literal["forget", "retain"]


@dataclass(frozen=True)
class Job:
    """The input of an edit, and the training that it may run.

    Attributes:
        model: the model to change in place.
        processor: its processor.
        forget: training facts to forget.
        retain: training facts to retain; may be empty if there is a statistic.
        settings: the method's settings.
        config: settings that do not depend on the method.
        train: trains the model on the method's two terms, ``train(forget, retain)``, with the run's mask,
            checkpoints and evaluation; parameters that require no gradient stay. ``begin=`` is called after
            the references are computed, and may change weights before the first step; ``evaluated=False``
            omits the evaluation.
        adapter: LoRA factors of the model; None without LoRA.
        saved_statistic: the retain statistic from a file; None: there is none.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    forget: Sequence[Sample]
    retain: Sequence[Sample]
    settings: Any
    config: TrainingConfig
    train: Callable[..., TrainingResult]
    adapter: Adapter | None = None
    saved_statistic: RetainStatistic | None = None

    @property
    def statistic(self) -> RetainStatistic:
        """The saved statistic of the retain set, or one measured now."""
        from efface.neurons.retained import measure_retained

        return self.saved_statistic or measure_retained(
            self.model, self.processor, self.retain, batch_size=self.config.batch_size
        )


Edit = Callable[[Job], "TrainingResult | None"]
"""Changes the model; returns the result of its training, if it trains."""


def nll_loss(model: nn.Module, batch: Batch, settings: Any) -> Term:
    """Descent on the answers: the loss is the mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=answers.nll.mean(), nll=answers.nll.detach())


def ascent_loss(model: nn.Module, batch: Batch, settings: Any) -> Term:
    """Gradient ascent on the answers: the loss is the negated mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=-answers.nll.mean(), nll=answers.nll.detach())


def kl_loss(model: nn.Module, batch: Batch, settings: Any) -> Term:
    """KL( p_ref || p ) over the vocabulary at the answers; a sample's reference is log p_ref, (tokens, V)."""
    labels = batch.inputs["labels"]
    logits = forward(model, batch.inputs).logits
    loss = divergence(batch.reference, distributions_of(logits, labels))
    return Term(loss=loss, nll=log_probs_of(logits, labels).nll.detach())


@dataclass(frozen=True)
class Method:
    """An unlearning method: forget and retain terms that training minimises, or an edit, which may measure
    first and run that training inside.

    Attributes:
        name: name of the method and of its file.
        paper: the publication.
        settings: dataclass of the method's settings; for a method that trains, a ``TrainingSettings``.
        forget_loss: the term of the forget set.
        retain_loss: the term of the retain set; None for training without one.
        forget_reference: what the forget term reads of the model before unlearning; None: nothing.
        retain_reference: what the retain term reads of it; None: nothing.
        alternatives: an alternative to each forget sample, drawn with a seed, such as the same question with
            another answer, for the forget loss (``batch.alternative``). None: there are none.
        edit: replaces plain training; None: train plainly.
        reads: the sets that the method reads. A method without ``retain`` runs without a retain set.
        statistic: whether it reads the retain set only through the statistic of ``efface.neurons.retained``,
            which may come from a file.
        lora: whether it can train LoRA factors; a method that cannot gets the whole model.
    """

    name: str
    paper: str
    settings: type[Any] = TrainingSettings
    forget_loss: Loss = ascent_loss
    retain_loss: Loss | None = nll_loss
    forget_reference: Quantity | None = None
    retain_reference: Quantity | None = None
    alternatives: Alternatives | None = None
    edit: Edit | None = None
    reads: tuple[Set, ...] = ("forget", "retain")
    statistic: bool = False
    lora: bool = True

    @property
    def trains(self) -> bool:
        """Whether the method trains weights."""
        return issubclass(self.settings, TrainingSettings)
