"""One pass over picture and question, shared by all answers that are scored after it.

The cache of a generation holds keys and values of the prompt followed by those of the answer. Cut back to the
prompt and copied for each candidate answer, they save reading picture and question again. If a family's cache
is of another kind, or gives other numbers, every answer is scored with its whole prompt instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.encoding import IGNORED, Inputs, full_text, prompt_of
from efface.evaluation.scoring.tokens import TokenScores, token_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_TOKEN_KEYS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Prefix:
    """The prompts of one batch after the model has read them.

    Attributes:
        batch: the left-padded prompts that the model has read.
        keys: per layer, (B, heads, T, head width); T covers all tokens of the prompt but the last.
        values: of the same shape.
        rope_deltas: offset that the model adds to text positions after a picture, (B, 1); None without.
    """

    batch: Inputs
    keys: list[Tensor]
    values: list[Tensor]
    rope_deltas: Tensor | None


def prefix_of(model: PreTrainedModel, batch: Inputs, cache: Any, steps: int) -> Prefix | None:
    """The prompts' part of the cache of a generation of ``steps`` tokens; None if the cache cannot be cut.

    A cache can be cut if each layer holds the keys and values of all tokens: no sliding window, no recurrent
    state, no separate keys for the picture.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    length = batch["input_ids"].shape[1]
    if not isinstance(cache, DynamicCache) or length < 2:
        return None
    layers: list[Any] = list(cache.layers)
    if any(
        type(layer) is not DynamicLayer or layer.get_seq_length() != length + steps - 1 for layer in layers
    ):
        return None
    deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
    if isinstance(deltas, Tensor) and deltas.shape[0] != len(batch["input_ids"]):
        return None
    return Prefix(
        batch=batch,
        keys=[layer.keys[:, :, : length - 1] for layer in layers],
        values=[layer.values[:, :, : length - 1] for layer in layers],
        rope_deltas=deltas if isinstance(deltas, Tensor) else None,
    )


def answer_tokens(
    processor: ProcessorMixin, question: str, answers: Sequence[str], *, image: bool | int
) -> list[list[int]] | None:
    """Tokens of each answer with its end token; None if the prompt's tokens do not come first.

    A token of the prompt stands for the picture, so the picture itself is not needed.
    """
    tokenizer, prompt = processor.tokenizer, prompt_of(processor, question, image=image)
    start = tokenizer(prompt)["input_ids"]
    tokens = []
    for answer in answers:
        whole = tokenizer(full_text(processor, question, answer, image=image))["input_ids"]
        if whole[: len(start)] != start or len(whole) == len(start):
            return None
        tokens.append(whole[len(start) :])
    return tokens


@torch.no_grad()
def score_after(
    model: PreTrainedModel, prefix: Prefix, answers: Sequence[tuple[int, Sequence[int]]], *, batch_size: int
) -> list[TokenScores]:
    """Scores of answers after the prompts they belong to.

    Args:
        model: the model that read the prompts.
        prefix: the prompts.
        answers: for each answer, the row of its prompt and its tokens.
        batch_size: answers per batch; those of similar length are batched together.
    """
    order = sorted(range(len(answers)), key=lambda i: (len(answers[i][1]), answers[i][0]))
    by_index: dict[int, TokenScores] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        scores = _score_batch(model, prefix, [answers[i] for i in indices])
        by_index.update(zip(indices, scores, strict=True))
    return [by_index[i] for i in range(len(answers))]


def _score_batch(
    model: PreTrainedModel, prefix: Prefix, answers: Sequence[tuple[int, Sequence[int]]]
) -> list[TokenScores]:
    from transformers.cache_utils import DynamicCache

    device = prefix.batch["input_ids"].device
    rows = torch.tensor([row for row, _ in answers], device=device)
    length = max(len(tokens) for _, tokens in answers)
    targets = torch.tensor([[*t, *[IGNORED] * (length - len(t))] for _, t in answers], device=device)
    # The last token of the prompt is read again: its output predicts the first token of the answer.
    last = prefix.batch["input_ids"][rows, -1:]
    ids = torch.cat([last, targets[:, :-1].clamp(min=0)], dim=1)
    prompt_mask = prefix.batch["attention_mask"][rows]
    mask = torch.cat([prompt_mask, (targets[:, :-1] != IGNORED).to(prompt_mask.dtype)], dim=1)
    cache = DynamicCache(
        ddp_cache_data=[
            (keys[rows], values[rows]) for keys, values in zip(prefix.keys, prefix.values, strict=True)
        ]
    )
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask, length, prefix.rope_deltas, rows),
        past_key_values=cache,
        use_cache=True,
        **_text_types(prefix.batch, ids),
    ).logits
    return token_scores(logits, targets)


def _positions(mask: Tensor, length: int, deltas: Tensor | None, rows: Tensor) -> Tensor:
    """Positions of the last ``length`` tokens of each row, counted over real tokens."""
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    if deltas is None:
        return positions
    return (positions + deltas.to(positions.device)[rows]).expand(3, -1, -1)


def _text_types(batch: Inputs, ids: Tensor) -> Inputs:
    """Zeros for a family's token-wise inputs beside ids and mask: an answer is text."""
    shape = batch["input_ids"].shape
    return {
        key: torch.zeros_like(ids, dtype=value.dtype)
        for key, value in batch.items()
        if key not in _TOKEN_KEYS and value.shape == shape
    }
