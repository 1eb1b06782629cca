"""Per-sample gradients of linear and convolutional layers, from one backward pass over a whole batch.

Each sample's gradient is the product of the layer's inputs and the gradient of its outputs, summed over
positions. It is squared and added as soon as the output gradient is known, layer by layer from the last to
the first, so only one layer's gradients exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from efface.encoding.answers import answer_log_probs
from efface.encoding.batches import Inputs
from efface.encoding.forward import supports_batches

Layer = nn.Linear | nn.Conv2d

_CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Per-sample gradients held at a time, by type of device."""
_LARGE = 2**19
"""Number of weights from which a layer on a processor is processed in tiles."""
_TILE = (256, 512)
"""Rows and columns of a tile: half a MiB of float32, which stays in a core's cache."""


def owning_layers(model: nn.Module, names: Iterable[str]) -> dict[str, Layer] | None:
    """The linear and 2-D convolutional layers that own the named parameters; None if something else owns
    one."""
    layers: dict[str, Layer] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if not plain or (isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str)):
            return None
        layers[owner] = layer  # type: ignore[assignment]
    return layers


def add_squares(
    model: nn.Module,
    batch: Inputs,
    layers: Mapping[str, Layer],
    total: Mapping[str, Tensor],
    scale: float = 1.0,
) -> bool:
    """Add ``scale`` times the squared per-sample gradients of a whole batch, from one backward pass.

    Returns False, and adds nothing, if the model's batches differ from its samples, or if a layer does not
    see the batch as one row per sample, or sees it more than once.
    """
    size = len(batch["input_ids"])
    if not supports_batches(model, batch):
        return False
    inputs: dict[str, Tensor] = {}
    fits = True

    def hook(name: str, layer: Layer) -> torch.utils.hooks.RemovableHandle:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal fits
            fits = fits and name not in inputs and args[0].shape[0] == size and args[0].dim() >= 3
            inputs[name] = args[0].detach()
            # Without trainable weights nothing would be differentiated, so the first layers start the graph.
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(
                lambda gradient: add_layer(name, layer, inputs.pop(name), gradient.detach(), total, scale)
            )

        return layer.register_forward_hook(record)

    handles = [hook(name, layer) for name, layer in layers.items()]
    weights = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        losses = answer_log_probs(model, batch).nll
        # Nothing to differentiate if no watched layer took part, such as the vision tower's for text.
        if fits and losses.requires_grad:
            losses.sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights:
            weight.requires_grad_(True)
    return fits


@torch.no_grad()
def add_layer(
    name: str,
    layer: Layer,
    inputs: Tensor,
    gradient: Tensor,
    total: Mapping[str, Tensor],
    scale: float = 1.0,
) -> None:
    """Add ``scale`` times the squared per-sample gradients of one layer.

    Args:
        name: name of the layer; ``total`` holds its measured parameters.
        layer: the layer, for the geometry of a convolution.
        inputs: input of the layer, (B, ..., I), or (B, C, H, W) for a convolution.
        gradient: gradient of the loss by the layer's output, (B, ..., O) or (B, O, H', W').
        total: sums by parameter name, float32, on any device.
        scale: factor of the added squares.
    """
    if isinstance(layer, nn.Conv2d):
        padding, dilation, stride = layer.padding, layer.dilation, layer.stride
        inputs = nn.functional.unfold(inputs, layer.kernel_size, dilation, padding, stride).transpose(1, 2)  # type: ignore[arg-type]
        gradient = gradient.flatten(2).transpose(1, 2)
    inputs, gradient = inputs.flatten(1, -2), gradient.flatten(1, -2)
    if not inputs.is_cuda or inputs.dtype != gradient.dtype:
        inputs, gradient = inputs.float(), gradient.float()
    weight, bias = total.get(f"{name}.weight"), total.get(f"{name}.bias")
    if weight is not None:
        large = weight.numel() >= _LARGE and inputs.device.type == "cpu"
        add = _add_in_tiles if large else _add_in_chunks
        add(weight.view(len(weight), -1), gradient, inputs, scale)
    if bias is not None:
        sums = gradient.sum(dim=1, dtype=torch.float32)
        bias.add_(sums.square().sum(dim=0).to(bias.device), alpha=scale)


def _add_in_chunks(total: Tensor, gradient: Tensor, inputs: Tensor, scale: float) -> None:
    """Add as many samples at a time as fit into ``_CHUNK_BYTES``."""
    samples = max(1, _CHUNK_BYTES["cuda" if inputs.is_cuda else "cpu"] // (4 * total.numel()))
    for start in range(0, len(inputs), samples):
        chunk = slice(start, start + samples)
        outer, inner = gradient[chunk].transpose(1, 2), inputs[chunk]
        if inner.dtype == torch.float32:
            per_sample = torch.bmm(outer, inner)
        else:  # on a GPU, products of half-precision numbers add up in float32 at many times its speed
            per_sample = torch.bmm(outer, inner, out_dtype=torch.float32)
        if inner.is_cuda:  # memory costs most, and the norm reads the gradients once and writes none back
            squares = torch.linalg.vector_norm(per_sample, dim=0).square_()
        else:
            squares = per_sample.square_().sum(dim=0)
        total.add_(squares.to(total.device), alpha=scale)


def _add_in_tiles(total: Tensor, gradient: Tensor, inputs: Tensor, scale: float) -> None:
    """Add tile by tile of the weight, sample by sample: a tile's gradients stay in the cache, and each sum is
    read and written once per batch instead of once per sample."""
    rows, columns = _TILE
    buffer = torch.empty(rows * columns)
    for top in range(0, total.shape[0], rows):
        outer = gradient[:, :, top : top + rows].transpose(1, 2)
        for first in range(0, total.shape[1], columns):
            tile = total[top : top + rows, first : first + columns]
            product = buffer[: tile.numel()].view(tile.shape)
            for a, b in zip(outer, inputs[:, :, first : first + columns], strict=True):
                torch.mm(a, b, out=product)
                tile.addcmul_(product, product, value=scale)
