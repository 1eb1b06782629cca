"""What an unlearning method is, and the registry of all of them.

A method is one file in ``efface/unlearning/methods`` whose name is the method's and which defines
``METHOD`` and, as a literal, the ``SETTINGS`` it needs. Files are imported when their method is asked for,
so a method costs nothing, and changes nothing, for the others.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import Inputs
from efface.encoding.answers import answer_log_probs
from efface.errors import EffaceError
from efface.settings import Schema, Settings
from efface.unlearning import methods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class Batch:
    """One batch as a loss sees it.

    Attributes:
        inputs: padded model inputs with ``labels`` (B, T).
        reference: the method's reference quantity of each of the B samples, measured on the model before
            unlearning; None when the method asks for none.
        other: the same questions with the method's other answers; None when it has none.
        seed: seed of the run, for what a method draws once.
    """

    inputs: Inputs
    reference: Sequence[Tensor] | None = None
    other: Batch | None = None
    seed: int = 0

    def referenced(self) -> Sequence[Tensor]:
        """The reference quantities.

        Raises:
            ValueError: if the batch has none.
        """
        if self.reference is None:
            raise ValueError(
                "this loss compares with the model before unlearning: give the batch the `reference` "
                "quantities of its samples"
            )
        return self.reference


@dataclass(frozen=True)
class Term:
    """A forget or retain term on one batch.

    Attributes:
        loss: what is minimised, a scalar.
        nll: negative log-likelihood of the answers in nats per token, (B,), for logs and stop rules.
    """

    loss: Tensor
    nll: Tensor


Loss = Callable[[nn.Module, Batch, Settings], Term]
Quantity = Callable[[nn.Module, Inputs, Settings], list[Tensor]]
"""What a method wants to know of a model: one tensor per sample, float32, whatever the batch."""
OtherAnswers = Callable[[Sequence[Sample], int], list[Sample]]
Edit = Callable[["PreTrainedModel", "ProcessorMixin", Settings], None]
Update = Literal["joint", "alternating"]
"""joint: one step on the sum of both gradients. alternating: a forget step, then a retain step, with shared
moments and clipping before masking."""


def nll_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """Descent on the answers: the loss is the mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=answers.nll.mean(), nll=answers.nll.detach())


def ascent_loss(model: nn.Module, batch: Batch, settings: Settings) -> Term:
    """Gradient ascent on the answers: the loss is the negated mean negative log-likelihood."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=-answers.nll.mean(), nll=answers.nll.detach())


def joint(settings: Settings) -> Update:
    """One step on the sum of both gradients, whatever the settings."""
    return "joint"


@dataclass(frozen=True)
class Method:
    """An unlearning method: by training, the terms for the forget and the retain set; else an edit.

    Attributes:
        name: as in ``params.yaml``.
        paper: where it comes from.
        forget_loss: the term of the forget set.
        retain_loss: the term of the retain set; None for a method that ignores the retain set.
        forget_reference: what the forget term reads of the model before unlearning; None for nothing.
        retain_reference: the same for the retain term.
        other_answers: for each forget sample the same question with another answer, drawn with a seed;
            they reach the forget loss as ``batch.other``. None: there are none.
        update: how the two gradients become steps, given the method's settings.
        edit: what is done to model and processor instead of training; None for a method that trains.
        settings: schema of each of the method's own settings, all of them required.
    """

    name: str
    paper: str
    forget_loss: Loss = ascent_loss
    retain_loss: Loss | None = nll_loss
    forget_reference: Quantity | None = None
    retain_reference: Quantity | None = None
    other_answers: OtherAnswers | None = None
    update: Callable[[Settings], Update] = joint
    edit: Edit | None = None
    settings: Mapping[str, Schema] = field(default_factory=dict)


FINE_TUNING = Method(name="fine_tuning", paper="plain descent; no unlearning")
"""The loop's method when there is nothing to forget."""


class _Registry(Mapping[str, Method]):
    """All methods by name; looking one up imports its file."""

    def __init__(self, package: ModuleType):
        self._package = package

    def __getitem__(self, name: str) -> Method:
        known = ", ".join(self)
        if name not in set(self):
            raise EffaceError(f"unknown unlearning method {name!r}; known methods: {known}")
        module = importlib.import_module(f"{self._package.__name__}.{name}")
        method: Method | None = getattr(module, "METHOD", None)
        if not isinstance(method, Method):
            raise EffaceError(f"{name}.py defines no METHOD; see the other methods: {known}")
        if method.name != name:
            raise EffaceError(
                f"{name}.py defines method {method.name!r}"
                + (", a name that is taken" if method.name in set(self) else "")
                + f": a method has the name of its file; known methods: {known}"
            )
        if dict(method.settings) != (getattr(module, "SETTINGS", None) or {}):
            raise EffaceError(f"{name}.py: the settings of METHOD must be the file's SETTINGS, a literal")
        return method

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(module.name for module in pkgutil.iter_modules(self._package.__path__)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))


METHODS: Mapping[str, Method] = _Registry(methods)
