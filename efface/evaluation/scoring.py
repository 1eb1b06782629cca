"""The step that needs the model: every evaluation sample becomes one row of a score table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from efface.data.encoding import Inputs, collate, encode, encode_prompts, to_device
from efface.data.samples import Sample
from efface.evaluation.metrics import STORED, choice
from efface.models.answers import answer_log_probs

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, ProcessorMixin


@torch.no_grad()
def score(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int = 32,
) -> pd.DataFrame:
    """Score a model on evaluation samples.

    For each sample: the greedy generation, the mean NLL of the gold answer in nats per token, and for
    multiple choice the log-probability per token of each option. Options are scored as answers to the bare
    question.

    Args:
        model: a multimodal LLM; measured in evaluation mode.
        processor: its processor.
        samples: evaluation samples; pictures are decoded batch by batch.
        batch_size: samples per batch.
        max_new_tokens: longest generation, in tokens.

    Returns:
        One row per sample in the order given, with the sample's own columns, ``generation, nll_gold,
        n_tokens, option_logprobs, correct`` and one column per metric of ``efface.evaluation.metrics`` (empty
        where it does not apply).

    Raises:
        ValueError: if there are no samples.
    """
    import pandas as pd

    if not samples:
        raise ValueError("no samples to score; check the evaluation sets in data/prepared/samples.parquet")
    model.eval()
    rows: list[dict[str, Any]] = [{} for _ in samples]
    batches = list(_batches(samples, batch_size))
    for indices in tqdm(batches, desc="scoring", unit="batch", mininterval=0.5):
        part = [samples[i] for i in indices]
        generations = generate(model, processor, part, max_new_tokens=max_new_tokens)
        golds = _answers(model, processor, [(sample, sample.answer) for sample in part], batch_size)
        pairs = [(sample, option) for sample in part for option in sample.options or ()]
        options = iter(_answers(model, processor, pairs, batch_size))
        for i, sample, generation, gold in zip(indices, part, generations, golds, strict=True):
            logprobs = [-next(options)[0] for _ in sample.options or ()]
            rows[i] = _row(sample, generation, gold, logprobs)
    table = pd.DataFrame(rows)
    for name in STORED:
        table[name] = table[name].astype("Float64")
    return table


@torch.no_grad()
def generate(
    model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[Sample], *, max_new_tokens: int
) -> list[str]:
    """Greedy answers to the samples' questions, all multimodal or all text-only, stripped of special
    tokens."""
    prompts = encode_prompts(processor, [s.question for s in samples], [s.image for s in samples])
    tokenizer = processor.tokenizer
    batch = to_device(collate(prompts, tokenizer.pad_token_id, side="left"), model.device)
    tokens = model.generate(  # type: ignore[operator]  # a mixin that transformers adds to the class
        **batch, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
    )
    texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _answers(
    model: PreTrainedModel, processor: ProcessorMixin, pairs: Sequence[tuple[Sample, str]], batch_size: int
) -> list[tuple[float, int]]:
    """NLL in nats per token and number of tokens of each answer to its sample's question."""
    result: list[tuple[float, int]] = []
    for start in range(0, len(pairs), batch_size):
        chosen = [replace(sample, answer=answer) for sample, answer in pairs[start : start + batch_size]]
        rows: list[Inputs] = encode(processor, chosen)
        batch = to_device(collate(rows, processor.tokenizer.pad_token_id), model.device)
        answers = answer_log_probs(model, batch)
        result += zip(answers.nll.tolist(), answers.tokens.tolist(), strict=True)
    return result


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Indices in batches, multimodal and text-only apart, short questions together."""
    for multimodal in (True, False):
        chosen = [i for i, sample in enumerate(samples) if (sample.image_bytes is not None) == multimodal]
        chosen.sort(key=lambda i: len(samples[i].question))
        yield from (chosen[start : start + size] for start in range(0, len(chosen), size))


def _row(sample: Sample, generation: str, gold: tuple[float, int], logprobs: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "set": sample.set,
        "part": sample.part,
        "modality": sample.modality,
        "task": sample.task,
        "attribute": sample.attribute,
        "entity_id": sample.entity_id,
        "sample_id": sample.sample_id,
        "pair_id": sample.pair_id,
        "question": sample.question,
        "gold": sample.answer,
        "generation": generation,
        "nll_gold": gold[0],
        "n_tokens": gold[1],
        "options": list(sample.options) if sample.options else None,
        "option_logprobs": logprobs or None,
        "correct": sample.options[choice(logprobs)] == sample.answer if sample.options else None,
    }
    return row | {name: metric.value_of(row) for name, metric in STORED.items()}
