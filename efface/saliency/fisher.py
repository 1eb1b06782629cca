"""The diagonal of the empirical Fisher information, exactly, one sample at a time.

    F = (1 / |D|) sum_d [ grad L(d) ]^2          element-wise

Squaring the gradient of a whole batch instead gives a result that is smaller by up to the batch size and
depends on which samples share a batch. Squares are summed in float32 whatever the dtype of the weights: a
float16 gradient of 1e-4 squares to zero.

For linear and convolutional layers, including LoRA's factors, one backward pass over a batch gives the
gradients of all its samples (``efface.saliency.layers``). The first batch with pictures and the first without
are also measured sample by sample; if the two ways disagree, the second is used throughout. Either way a
gradient is used and freed as soon as the backward pass yields it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from efface.encoding.answers import answer_log_probs
from efface.encoding.batches import Collated, Inputs, split, to_device
from efface.models.anatomy import image_token_id
from efface.processes import sum_over_processes
from efface.saliency.layers import add_squares, owning_layers

Unit = Literal["sample", "batch"]
Storage = Literal["device", "cpu"]
SAMPLE_SIZE = 2**22
"""Largest number of weights that ``SquaredGradients.sample`` returns."""


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    parameters: Iterable[str] | None = None,
    unit: Unit = "sample",
    storage: Storage = "device",
) -> dict[str, Tensor]:
    """Mean squared gradient of the answer NLL with respect to each weight.

    The model is measured in evaluation mode and is unchanged afterwards, including ``.grad`` and
    ``requires_grad``. Under ``torch.distributed`` the result includes the batches of all processes.

    Args:
        model: a multimodal LLM, or one with LoRA adapters.
        batches: model inputs with ``labels``. Each of several processes passes its share
            (``efface.processes.share``), which may be empty.
        parameters: names of the parameters to measure; None takes all that require a gradient.
        unit: ``sample`` squares the gradient of each sample's loss, ``batch`` the gradient of each batch's.
        storage: where the sums are stored: ``device``, beside the weights, or ``cpu``, in main memory. Does
            not change the result.

    Returns:
        Parameter name -> float32 tensor of the parameter's shape, values >= 0, in the storage.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.

    Reference:
        arXiv:2502.11051, section on the saliency map; its released code squares batch gradients
        (``unit="batch"``).
    """
    squares = SquaredGradients(model, parameters=parameters, unit=unit, storage=storage)
    squares.add(batches)
    return squares.mean()


class SquaredGradients:
    """Sums of squared gradients, to which batches are added; arguments as for ``fisher_diagonal``.

    Attributes:
        parameters: the measured parameters, by name.
        sums: this process's sums so far, float32, by parameter name.
        count: number of gradients that this process has squared so far.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        parameters: Iterable[str] | None = None,
        unit: Unit = "sample",
        storage: Storage = "device",
    ):
        if storage not in ("device", "cpu"):
            raise ValueError(f"storage is {storage!r}, expected 'device' or 'cpu'")
        self.model, self.unit = model, unit
        self.parameters = named_parameters(model, parameters)
        self.sums = {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device if storage == "device" else "cpu")
            for name, p in self.parameters.items()
        }
        self.count = 0
        self._layers = None if unit == "batch" else owning_layers(model, self.parameters)
        self._checked: set[bool] = set()

    def add(self, batches: Iterable[Inputs]) -> None:
        """Add the squared gradients of these batches."""
        device = next(self.model.parameters()).device
        token = image_token_id(self.model)
        with measuring(self.model, self.parameters):
            for batch in batches:
                batch = to_device(batch, device)
                parts = [batch] if self.unit == "batch" else split(batch, token)
                self.count += len(parts)
                if not self._add_at_once(batch, parts):
                    self._gradients(parts, self._add_square)

    def mean(self) -> dict[str, Tensor]:
        """The sums of all processes divided, in place, by their count."""
        return _mean(self.model, self.sums, self.count)

    def sample(self) -> tuple[dict[str, Tensor], int]:
        """Sums over all processes for evenly spaced weights, every k-th if there are many, in main memory;
        and their count."""
        size = sum(total.numel() for total in self.sums.values())
        step = max(1, size // SAMPLE_SIZE) | 1  # odd: no row length divides it
        sums = {name: total.view(-1)[::step].clone() for name, total in self.sums.items()}
        (count,) = _over_processes(self.model, torch.tensor([self.count]), sums)
        return {name: total.cpu() for name, total in sums.items()}, count

    def _add_at_once(self, batch: Inputs, parts: list[Inputs]) -> bool:
        """Add the squares of a whole batch from one backward pass; False, and nothing is added, if that is
        impossible."""
        if self._layers is None or _some_without_picture(batch, image_token_id(self.model)):
            return False
        kind = "pixel_values" in batch
        before = {} if kind in self._checked else self._norms()
        if not add_squares(self.model, batch, self._layers, self.sums):
            return False
        if kind in self._checked:
            return True
        self._checked.add(kind)
        after, expected = self._norms(), dict.fromkeys(self.sums, 0.0)

        def add(name: str, gradient: Tensor) -> None:
            expected[name] += float(gradient.square_().sum(dtype=torch.float64))

        self._gradients(parts, add)
        single = next(self.model.parameters()).dtype == torch.float32
        relative, absolute = (1e-2, 1e-6) if single else (1e-1, 1e-3)  # half precision rounds activations
        absolute *= max(expected.values())
        for name, norm in expected.items():
            if abs(after[name] - before[name] - norm) > relative * norm + absolute:
                add_squares(self.model, batch, self._layers, self.sums, scale=-1.0)
                self._layers = None
                logging.getLogger(__name__).warning(
                    "squared gradients of %s from a batch (%.3g) and from its samples one by one (%.3g) "
                    "differ: measuring sample by sample, which is slower",
                    name,
                    after[name] - before[name],
                    norm,
                )
                return False
        return True

    def _add_square(self, name: str, gradient: Tensor) -> None:
        total = self.sums[name]
        total.add_(gradient.square_().to(total.device))

    def _norms(self) -> dict[str, float]:
        return {name: float(total.sum(dtype=torch.float64)) for name, total in self.sums.items()}

    def _gradients(self, parts: Iterable[Inputs], use: Callable[[str, Tensor], object]) -> None:
        """Pass on the gradient of each part's mean loss, parameter by parameter."""
        with _gradient_hooks(self.parameters, use):
            for part in parts:
                _backward(answer_log_probs(self.model, part).nll.mean())


def mean_gradient(
    model: nn.Module, batches: Iterable[Inputs], *, parameters: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Gradient of the mean answer NLL over all samples, in float32; arguments as for ``fisher_diagonal``.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.
    """
    measured = named_parameters(model, parameters)
    sums = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in measured.items()}
    count = 0
    with measuring(model, measured), _gradient_hooks(measured, lambda name, g: sums[name].add_(g)):
        for batch in batches:
            batch = to_device(batch, next(model.parameters()).device)
            _backward(answer_log_probs(model, batch).nll.sum())
            count += len(batch["input_ids"])
    return _mean(model, sums, count)


def named_parameters(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """The parameters of these names, or all that require a gradient.

    Raises:
        ValueError: if a name is not a parameter of the model.
    """
    available = dict(model.named_parameters())
    if names is None:
        return {name: p for name, p in available.items() if p.requires_grad}
    names = list(names)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a parameter of {type(model).__name__}")
    return {name: available[name] for name in names}


@contextmanager
def measuring(model: nn.Module, measured: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode with gradients for the measured parameters only; all is restored afterwards."""
    training = model.training
    flags = {p: p.requires_grad for p in model.parameters()}
    ids = set(map(id, measured.values()))
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in ids)
        yield
    finally:
        model.train(training)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _mean(model: nn.Module, sums: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    if not sums:
        raise ValueError("there is no parameter to measure: `parameters` is empty, or none trains")
    (total,) = _over_processes(model, torch.tensor([count]), sums)
    if total == 0:
        raise ValueError("cannot measure the gradients of no samples: `batches` is empty")
    for value in sums.values():
        value.div_(total)
    return sums


def _over_processes(model: nn.Module, counts: Tensor, sums: Mapping[str, Tensor]) -> list[int]:
    """Replace sums, in place, by those of all processes, one tensor at a time on the model's device, through
    which processes communicate; returns the counts of all."""
    device = next(model.parameters()).device
    for tensor in (counts, *sums.values()):
        on_device = tensor.to(device)
        sum_over_processes([on_device])
        if on_device is not tensor:
            tensor.copy_(on_device)
    return [int(count) for count in counts]


def _some_without_picture(batch: Inputs, image_token: int | None) -> bool:
    """Whether a batch mixes samples with and without pictures: the position of a picture row then does not
    give its sample, even if there are as many rows as samples."""
    if "pixel_values" not in batch:
        return False
    if isinstance(batch, Collated):
        return any(not share.rows or share.shape is None for share in batch.shares["pixel_values"])
    return image_token is not None and not bool((batch["input_ids"] == image_token).any(dim=1).all())


@contextmanager
def _gradient_hooks(
    parameters: Mapping[str, nn.Parameter], use: Callable[[str, Tensor], object]
) -> Iterator[None]:
    """In backward passes, pass on each gradient in float32 and free it before the next one is computed."""

    def pass_on(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            use(name, parameter.grad.float())
        parameter.grad = None

    before = {parameter: parameter.grad for parameter in parameters.values()}
    handles = [
        parameter.register_post_accumulate_grad_hook(functools.partial(pass_on, name))
        for name, parameter in parameters.items()
    ]
    try:
        for parameter in before:
            parameter.grad = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before.items():
            parameter.grad = gradient


def _backward(loss: Tensor) -> None:
    """Backward pass; parameters that the loss does not reach, such as the vision tower's for text, get no
    gradient."""
    if loss.requires_grad:
        loss.backward()
