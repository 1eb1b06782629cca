"""Quantities that losses read of a model at the answers' positions, one tensor per sample.

As reference values they are computed with the model before unlearning. Each depends only on its sample, not
on padding or other samples of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efface.encoding import IGNORED, Inputs
from efface.encoding.answers import answer_log_probs
from efface.encoding.forward import forward
from efface.errors import ModelError
from efface.models.anatomy import decoder_of, image_token_id


def answer_totals(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Log-probability of each answer, summed over its tokens; scalars."""
    return list(answer_log_probs(model, inputs).total.float())


def answer_distributions(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Log-probabilities over the vocabulary at each answer token, (tokens, V)."""
    return distributions_of(forward(model, inputs).logits, inputs["labels"])


def distributions_of(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Log-probabilities (tokens, V) per sample from logits (B, T, V); each token is predicted from the
    previous position."""
    answers = labels[:, 1:] != IGNORED
    return [row[mask].float().log_softmax(dim=-1) for row, mask in zip(logits[:, :-1], answers, strict=True)]


def divergence(reference: Sequence[Tensor], now: list[Tensor]) -> Tensor:
    """KL( p_ref || p ) of log-probabilities (tokens, V), one pair per sample: mean over samples of the mean
    over tokens."""
    return mean_over_samples([(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(reference, now, strict=True)])


def hidden_states(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Hidden states after decoder layer ``settings.layer``, at pictures and answers, (tokens, H)."""
    return forward_with_states(model, inputs, settings.layer)[1]


def forward_with_states(model: nn.Module, inputs: Inputs, layer: int) -> tuple[Any, list[Tensor]]:
    """The model's output, and per sample the hidden states (tokens, H) after a decoder layer.

    The states are at the positions of picture tokens, of answer tokens, and of the last token before the
    answer, from which its first token is predicted; never at padding. For the last layer they are its own
    output, while transformers returns them after the decoder's final norm.

    Args:
        model: a multimodal LLM.
        inputs: padded inputs with ``labels``.
        layer: counted from 1.

    Raises:
        ModelError: if the decoder has fewer layers, or the model names no picture token.
    """
    last_outputs: list[Tensor] = []
    stack = getattr(decoder_of(model), "layers", [])
    hooks = [
        module.register_forward_hook(
            lambda module, args, output: last_outputs.append(output if torch.is_tensor(output) else output[0])
        )
        for module in stack[-1:]
    ]
    try:
        output = forward(model, inputs, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    layers = output.hidden_states
    if not 1 <= layer < len(layers):
        raise ModelError(f"layer is {layer}: expected 1 to {len(layers) - 1}, the layers of the decoder")
    states = layers[layer]
    if layer == len(layers) - 1 and last_outputs:
        # If the model does not support batches, its samples went one by one.
        calls = 1 if len(last_outputs[-1]) == len(states) else len(states)
        states = torch.cat(last_outputs[-calls:])
    image_token = image_token_id(model)
    if image_token is None:
        raise ModelError(f"the configuration of {type(model).__name__} names no image token id")
    labelled = inputs["labels"] != IGNORED
    positions = labelled | torch.nn.functional.pad(labelled[:, 1:], (0, 1))
    positions |= inputs["input_ids"] == image_token
    if "attention_mask" in inputs:
        positions &= inputs["attention_mask"].bool()
    return output, [row[mask].float() for row, mask in zip(states, positions, strict=True)]


def mean_over_samples(values: list[Tensor]) -> Tensor:
    """Mean over samples of the mean over each sample's positions; a scalar."""
    return torch.stack([value.mean() for value in values]).mean()
