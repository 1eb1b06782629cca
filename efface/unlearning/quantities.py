"""What losses read of a model at the answers' positions, one tensor per sample.

As references these are measured once on the model before unlearning. Every one of them depends on its sample
alone: neither padding nor the company in a batch changes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from efface.encoding import IGNORED, Inputs
from efface.encoding.answers import answer_log_probs
from efface.encoding.forward import forward
from efface.errors import ModelError


def answer_totals(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Log-probability of each answer, summed over its tokens; scalars."""
    return list(answer_log_probs(model, inputs).total.float())


def answer_distributions(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Log-probabilities over the whole vocabulary from which each answer token is drawn, (tokens, V)."""
    return distributions_of(forward(model, inputs).logits, inputs["labels"])


def distributions_of(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Log-probabilities (tokens, V) per sample, from logits (B, T, V): each token is predicted from the
    position before."""
    chosen = labels[:, 1:] != IGNORED
    return [row[kept].float().log_softmax(dim=-1) for row, kept in zip(logits[:, :-1], chosen, strict=True)]


def hidden_states(model: nn.Module, inputs: Inputs, settings: Any) -> list[Tensor]:
    """Hidden states after decoder layer ``settings.layer``, at pictures and answers, (tokens, H)."""
    return states_of(model, forward(model, inputs, output_hidden_states=True), inputs, settings.layer)


def states_of(model: nn.Module, output: Any, inputs: Inputs, layer: int) -> list[Tensor]:
    """Per sample the hidden states (tokens, H) after a decoder layer, counted from 1.

    At the positions of picture tokens, of answer tokens, and of the last token before the answer, from which
    its first token is predicted; never at padding.

    Raises:
        ModelError: if the decoder has fewer layers.
    """
    layers = output.hidden_states
    if not 1 <= layer < len(layers):
        raise ModelError(
            f"the decoder has layers 1 to {len(layers) - 1}, got layer {layer}: set another `layer`"
        )
    labelled = inputs["labels"] != IGNORED
    kept = labelled | torch.nn.functional.pad(labelled[:, 1:], (0, 1))
    kept |= inputs["input_ids"] == image_token(model)
    if "attention_mask" in inputs:
        kept &= inputs["attention_mask"].bool()
    return [row[chosen].float() for row, chosen in zip(layers[layer], kept, strict=True)]


def image_token(model: nn.Module) -> int:
    """Id of the token that stands where a picture's features go.

    Raises:
        ModelError: if the model's configuration names none.
    """
    for name in ("image_token_id", "image_token_index"):
        value = getattr(model.config, name, None)
        if value is not None:
            return int(value)
    raise ModelError(f"the configuration of {type(model).__name__} names no image token id")


def mean_over_samples(values: list[Tensor]) -> Tensor:
    """Mean over samples of the mean over each sample's positions; a scalar."""
    return torch.stack([value.mean() for value in values]).mean()
