"""An adversary in the hidden states: forgetting must withstand moving a layer's states towards recall.

    d   = -radius g / ||g||        g = gradient of a sample's NLL by its states h after a layer
    L'  = L with h + d instead of h; d is a constant

One step to the surface of the ball, so one more pass per forget batch.

Reference:
    Sheshadri et al., "Latent Adversarial Training", arXiv:2407.15549, which takes several steps in the ball.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from efface.encoding.answers import answer_log_probs
from efface.encoding.forward import separable
from efface.errors import ModelError
from efface.models.anatomy import decoder_of
from efface.unlearning.method import Batch, Loss, Term

Pair = tuple[Tensor, Tensor]
"""Token ids (B, T) of a forward pass, and its offsets to the hidden states, (B, T, H)."""


def with_adversary(loss: Loss, layer: int, radius: float) -> Loss:
    """The loss with hidden states moved after a decoder layer, counted from 1.

    The batch itself is attacked, not its alternative. References stay those of the unattacked model.
    """

    def attacked(model: nn.Module, batch: Batch, settings: Any) -> Term:
        moves = [(ids, -radius * _unit(gradient)) for ids, gradient in recall(model, batch, layer)]

        def move(ids: Tensor, states: Tensor) -> Tensor:
            for own, step in moves:
                if torch.equal(own, ids):
                    return states + step.to(states.dtype)
            return states

        with states_changed(model, layer, move):
            return loss(model, batch, settings)

    return attacked


def recall(model: nn.Module, batch: Batch, layer: int) -> list[Pair]:
    """The gradient of each sample's NLL by the hidden states, with the token ids of each forward pass."""
    pairs: list[Pair] = []
    separable(model, batch.inputs)  # before there are hooks, as it may call the model

    def add_zero(ids: Tensor, states: Tensor) -> Tensor:
        pairs.append((ids, torch.zeros_like(states, requires_grad=True)))
        return states + pairs[-1][1]

    with torch.enable_grad(), states_changed(model, layer, add_zero):
        nll = answer_log_probs(model, batch.inputs).nll.sum()
    gradients = torch.autograd.grad(nll, [zeros for _, zeros in pairs])
    return [(ids, gradient) for (ids, _), gradient in zip(pairs, gradients, strict=True)]


@contextmanager
def states_changed(
    model: nn.Module, layer: int, change: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Within this context the output of a decoder layer passes through ``change(ids, states)``.

    Raises:
        ModelError: if the decoder has no such layer.
    """
    layers = getattr(decoder_of(model), "layers", [])
    if layer > len(layers):
        raise ModelError(
            f"adversarial_layer is {layer}: expected 1 to {len(layers)}, the layers of the decoder"
        )
    ids = torch.zeros(0)

    def note(module: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        nonlocal ids
        ids = keywords["input_ids"]

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        if torch.is_tensor(output):
            return change(ids, output)
        return (change(ids, output[0]), *output[1:])

    handles = [
        model.register_forward_pre_hook(note, with_kwargs=True),
        layers[layer - 1].register_forward_hook(replace),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient scaled to length 1; 0 stays 0."""
    norms = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / norms.view(-1, *[1] * (gradient.dim() - 1))
