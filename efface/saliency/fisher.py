"""The diagonal of the empirical Fisher information, exactly, one sample at a time.

    F = (1 / |D|) sum_d [ grad L(d) ]^2          element-wise

Squaring the gradient of a whole batch instead gives a quantity up to a batch size smaller, and it depends on
which samples met. Squares are accumulated in float32 whatever the dtype of the weights: a float16 gradient of
1e-4 squares to zero.

For linear and convolutional layers, LoRA's factors among them, the gradient of each sample is the product of
what went in and of the gradient that came back, so one backward pass over a batch gives the per-sample
gradients of all its samples. Anything else is walked sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from efface.data.batches import Inputs, split, to_device
from efface.models.anatomy import image_token_id
from efface.models.answers import answer_log_probs
from efface.processes import sum_over_processes

_CHUNK_BYTES = 2**28


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    parameters: Iterable[str] | None = None,
    unit: Literal["sample", "batch"] = "sample",
) -> dict[str, Tensor]:
    """Mean squared gradient of the answer NLL with respect to each weight.

    The model is measured in evaluation mode and left as it was found, ``.grad`` and ``requires_grad``
    included. When ``torch.distributed`` is initialised the result is that of all processes' batches together.

    Args:
        model: a multimodal LLM, or one with LoRA adapters.
        batches: model inputs with ``labels``; all samples of a batch multimodal or all text-only. Of several
            processes each passes its share (``efface.processes.share``), which may be empty.
        parameters: names of the parameters to measure; None takes all that require a gradient.
        unit: ``sample`` squares the gradient of each sample's loss, ``batch`` the gradient of each batch's.

    Returns:
        Parameter name -> float32 tensor of the parameter's shape, values >= 0, on the parameter's device.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.

    Reference:
        arXiv:2502.11051, section on the saliency map; its released code squares batch gradients
        (``unit="batch"``).
    """
    chosen = choose(model, parameters)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in chosen.items()}
    layers = _layers_of(model, chosen)
    count = 0
    with measuring(model, chosen):
        for batch in batches:
            batch = to_device(batch, next(model.parameters()).device)
            size = len(batch["input_ids"])
            if unit == "batch":
                _add_square(model, batch, chosen, total)
                count += 1
                continue
            if layers is None or not _add_squares_of_layers(model, batch, layers, total):
                for sample in split(batch, image_token_id(model)):
                    _add_square(model, sample, chosen, total)
            count += size
    return averaged(total, count)


def mean_gradient(
    model: nn.Module, batches: Iterable[Inputs], *, parameters: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Gradient of the mean answer NLL over all samples, in float32; arguments as for ``fisher_diagonal``.

    Raises:
        ValueError: if there is no batch, or a name is not a parameter of the model.
    """
    chosen = choose(model, parameters)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in chosen.items()}
    count = 0
    with measuring(model, chosen):
        for batch in batches:
            batch = to_device(batch, next(model.parameters()).device)
            for name, gradient in _gradient(answer_log_probs(model, batch).nll.sum(), chosen).items():
                total[name] += gradient
            count += len(batch["input_ids"])
    return averaged(total, count)


def averaged(total: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Sums over all processes, divided by their count of samples or batches."""
    if not total:
        raise ValueError("there is no parameter to measure: `parameters` is empty, or none trains")
    tally = torch.tensor(count, device=next(iter(total.values())).device)
    sum_over_processes([tally, *total.values()])
    if int(tally) == 0:
        raise ValueError("cannot measure the gradients of no samples: `batches` is empty")
    return {name: value / int(tally) for name, value in total.items()}


def choose(model: nn.Module, parameters: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """The named parameters, or all that require a gradient.

    Raises:
        ValueError: if a name is not a parameter of the model.
    """
    available = dict(model.named_parameters())
    if parameters is None:
        return {name: p for name, p in available.items() if p.requires_grad}
    names = list(parameters)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a parameter of {type(model).__name__}")
    return {name: available[name] for name in names}


@contextmanager
def measuring(model: nn.Module, chosen: dict[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for the chosen parameters only; everything put back afterwards."""
    training = model.training
    flags = {p: p.requires_grad for p in model.parameters()}
    picked = set(map(id, chosen.values()))
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in picked)
        yield
    finally:
        model.train(training)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _add_square(
    model: nn.Module, batch: Inputs, chosen: dict[str, nn.Parameter], total: dict[str, Tensor]
) -> None:
    """Add the squared gradient of one loss, by plain automatic differentiation."""
    for name, gradient in _gradient(answer_log_probs(model, batch).nll.mean(), chosen).items():
        total[name] += gradient.square()


def _gradient(loss: Tensor, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients in float32 of the parameters that the loss reaches."""
    if not loss.requires_grad:
        return {}
    # A parameter the loss does not reach has gradient zero: the vision tower of a text-only sample.
    gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    pairs = zip(chosen, gradients, strict=True)
    return {name: gradient.float() for name, gradient in pairs if gradient is not None}


_Layer = nn.Linear | nn.Conv2d


def _layers_of(model: nn.Module, chosen: dict[str, nn.Parameter]) -> dict[str, _Layer] | None:
    """The linear and 2-D convolutional layers that own the chosen parameters; None if something else owns
    one."""
    layers: dict[str, _Layer] = {}
    for name in chosen:
        owner = name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if not plain or (isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str)):
            return None
        layers[owner] = layer  # type: ignore[assignment]
    return layers


def _add_squares_of_layers(
    model: nn.Module, batch: Inputs, layers: dict[str, _Layer], total: dict[str, Tensor]
) -> bool:
    """Add the squared per-sample gradients of a whole batch from one backward pass.

    Returns False, having added nothing, if a layer does not see the batch one row per sample, or sees it more
    than once.
    """
    size = len(batch["input_ids"])
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    fits = True

    def watch(name: str, layer: _Layer) -> torch.utils.hooks.RemovableHandle:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal fits
            fits = fits and name not in inputs and args[0].shape[0] == size and args[0].dim() >= 3
            inputs[name] = args[0].detach()
            # Without trainable weights nothing would be differentiated: the first layers start the graph.
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(lambda gradient: grads.__setitem__(name, gradient.detach()))

        return layer.register_forward_hook(record)

    handles = [watch(name, layer) for name, layer in layers.items()]
    weights = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        losses = answer_log_probs(model, batch).nll
        # Nothing to differentiate when no watched layer took part: the vision tower with text-only samples.
        if fits and losses.requires_grad:
            losses.sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights:
            weight.requires_grad_(True)
    if fits:
        for name, gradient in grads.items():
            _add_layer(name, layers[name], inputs[name], gradient, total)
    return fits


def _add_layer(name: str, layer: _Layer, seen: Tensor, gradient: Tensor, total: dict[str, Tensor]) -> None:
    """Per-sample weight gradient = gradient at the output times input, summed over positions."""
    if isinstance(layer, nn.Conv2d):
        padding, dilation, stride = layer.padding, layer.dilation, layer.stride
        seen = nn.functional.unfold(seen, layer.kernel_size, dilation, padding, stride).transpose(1, 2)  # type: ignore[arg-type]
        gradient = gradient.flatten(2).transpose(1, 2)
    seen, gradient = seen.flatten(1, -2).float(), gradient.flatten(1, -2).float()
    weight, bias = f"{name}.weight", f"{name}.bias"
    if weight in total:
        rows = max(1, _CHUNK_BYTES // (4 * total[weight].numel()))
        for start in range(0, len(seen), rows):
            part = slice(start, start + rows)
            per_sample = torch.bmm(gradient[part].transpose(1, 2), seen[part])
            total[weight] += per_sample.square_().sum(dim=0).view_as(total[weight])
    if bias in total:
        total[bias] += gradient.sum(dim=1).square().sum(dim=0)
