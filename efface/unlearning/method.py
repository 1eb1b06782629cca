"""What an unlearning method is, and the registry of all of them.

A method is one file in ``efface/unlearning/methods`` whose name is the method's and which defines
``METHOD``. Files are imported when their method is asked for, so a method costs nothing, and changes
nothing, for the others.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from efface.data.encoding import Inputs
from efface.errors import EffaceError
from efface.models.answers import answer_log_probs, nll
from efface.unlearning import methods


@dataclass(frozen=True)
class ForgetTerm:
    """A forget term on one batch.

    Attributes:
        loss: what is minimised, a scalar.
        nll: negative log-likelihood of the forget answers in nats per token, (B,), for logs and stop rules.
    """

    loss: Tensor
    nll: Tensor


ForgetLoss = Callable[[nn.Module, Inputs, Tensor | None, Mapping[str, float]], ForgetTerm]
RetainLoss = Callable[[nn.Module, Inputs], Tensor]


@dataclass(frozen=True)
class Method:
    """An unlearning method that trains: the term for the forget set and the term for the retain set.

    Attributes:
        name: as in ``params.yaml``.
        paper: where it comes from.
        forget_loss: called with model, forget batch, reference log-probabilities of the batch's answers
            under the model before unlearning (B,) or None, and the method's own settings.
        retain_loss: called with model and retain batch; None for a method that ignores the retain set.
        needs_reference: whether ``forget_loss`` reads the reference log-probabilities.
        settings: names of the method's own settings, each required.
    """

    name: str
    paper: str
    forget_loss: ForgetLoss
    retain_loss: RetainLoss | None = nll
    needs_reference: bool = False
    settings: tuple[str, ...] = ()


class _Registry(Mapping[str, Method]):
    """All methods by name; looking one up imports its file."""

    def __getitem__(self, name: str) -> Method:
        if name not in set(self):
            raise EffaceError(f"unknown unlearning method {name!r}; known methods: {', '.join(self)}")
        module = importlib.import_module(f"{methods.__name__}.{name}")
        method: Method = module.METHOD
        if method.name != name:
            raise EffaceError(f"{module.__file__} defines method {method.name!r}; name file and method alike")
        return method

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(module.name for module in pkgutil.iter_modules(methods.__path__)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))


METHODS: Mapping[str, Method] = _Registry()


def ascent_loss(
    model: nn.Module, forget: Inputs, reference: Tensor | None, settings: Mapping[str, float]
) -> ForgetTerm:
    """Gradient ascent on the answers: the loss is the negated mean negative log-likelihood."""
    answers = answer_log_probs(model, forget)
    return ForgetTerm(loss=-answers.nll.mean(), nll=answers.nll.detach())
