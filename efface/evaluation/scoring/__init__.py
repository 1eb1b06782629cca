"""Scoring: every evaluation sample becomes one row of a score table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from efface.data.samples import Sample
from efface.encoding import Inputs, collate, encode, to_device
from efface.encoding.forward import forward, model_inputs, supports_batches
from efface.errors import ModelError
from efface.evaluation.metrics import STORED, choice
from efface.evaluation.scoring.backoff import MemoryBackoff
from efface.evaluation.scoring.cache import ResultCache
from efface.evaluation.scoring.prefix import Prefix, answer_tokens, prefix_of, score_after
from efface.evaluation.scoring.prompt_style import PromptStyle
from efface.evaluation.scoring.tokens import TokenScores, token_scores

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, ProcessorMixin

_PROBED = 2
"""Samples on which shared prompts are compared with whole prompts."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.25
"""Difference of log-probabilities that half-precision arithmetic may explain."""


@dataclass(frozen=True)
class Answers:
    """A model's generation for one sample, and the scores of its candidate answers."""

    generation: str
    scores: dict[str, TokenScores]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int = 32,
    share_prefix: bool = True,
    style: PromptStyle | None = None,
    cache: ResultCache | None = None,
) -> pd.DataFrame:
    """Score a model on evaluation samples.

    For each sample: the greedy generation and, under teacher forcing, the mean NLL of the gold answer, its
    paraphrase and each wrong answer in nats per token, the log-probability per token of each option, and the
    scores of every token of the gold answer. Answers and options are scored as answers to the bare question.

    Args:
        model: a multimodal LLM; measured in evaluation mode.
        processor: its processor.
        samples: evaluation samples; pictures are decoded batch by batch.
        batch_size: samples, or answers to them, per batch; halved when memory runs out.
        max_new_tokens: longest generation, in tokens.
        share_prefix: read picture and question once for all answers if the family allows it; False: never.
        style: wording of the questions that the model answers freely; None: bare questions.
        cache: cache of finished batches; None: no cache.

    Returns:
        One row per sample in the order given, with the sample's own columns, ``generation, nll_gold,
        n_tokens, nll_paraphrase, nll_wrong, token_logprobs, token_ranks, token_zscores, options,
        option_logprobs, correct`` and one column per stored metric of ``efface.evaluation.metrics``
        (all empty where they do not apply).

    Raises:
        ValueError: if there are no samples.
        ModelError: if the model gives a log-probability that is not finite.
    """
    import pandas as pd

    if not samples:
        raise ValueError("samples is empty: expected at least one evaluation sample")
    model.eval()
    scorer = Scorer(
        model,
        processor,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        share_prefix=share_prefix,
        style=style,
    )
    rows: list[dict[str, Any]] = [{} for _ in samples]
    batches = list(_batches(samples, batch_size))
    for indices in tqdm(batches, desc="scoring", unit="batch", mininterval=0.5):
        batch = [samples[i] for i in indices]
        for i, sample, answer in zip(indices, batch, _answers(scorer, batch, cache), strict=True):
            rows[i] = _row(sample, answer)
    table = pd.DataFrame(rows)
    table["nll_paraphrase"] = table["nll_paraphrase"].astype("float64")
    for name in STORED:
        table[name] = table[name].astype("Float64")
    return table


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    answers: Sequence[str],
    *,
    batch_size: int,
) -> list[float | None]:
    """Mean log-likelihood per token that a model gives to another model's answers, in nats.

    Each answer follows its question without the picture: about form, not about whether the picture shows it.
    The end token is left out, since an answer that was cut has none.

    Args:
        model: a multimodal LLM that writes as answers should be written; measured in evaluation mode.
        processor: its processor.
        samples: the questions.
        answers: one to each question.
        batch_size: answers side by side; halved when memory runs out.

    Returns:
        One number per answer, at most 0; None for an answer without a word.
    """
    model.eval()
    pairs = [
        replace(sample, image_bytes=None, more_image_bytes=(), answer=answer.strip())
        for sample, answer in zip(samples, answers, strict=True)
    ]
    order = sorted(
        (i for i, pair in enumerate(pairs) if pair.answer),
        key=lambda i: len(pairs[i].question) + len(pairs[i].answer),
    )
    scorer = Scorer(model, processor, batch_size=batch_size, max_new_tokens=1, share_prefix=False)
    scores = scorer.batches.run(scorer.answer_scores, [pairs[i] for i in order])
    result: list[float | None] = [None] * len(pairs)
    for i, of_answer in zip(order, scores, strict=True):
        if words := of_answer.logprobs[:-1]:
            result[i] = math.fsum(words) / len(words)
    return result


class Scorer:
    """Scores batches of samples; checks once per kind of sample whether prompts can be shared.

    Args:
        model: a multimodal LLM in evaluation mode.
        processor: its processor.
        batch_size: samples, or answers to them, per batch; halved when memory runs out.
        max_new_tokens: longest generation, in tokens.
        share_prefix: False scores every answer with its whole prompt.
        style: wording of the questions; a prompt is shared only if it is the bare question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        batch_size: int,
        max_new_tokens: int,
        share_prefix: bool = True,
        style: PromptStyle | None = None,
    ):
        self.model = model
        self.processor = processor
        self.batches = MemoryBackoff(batch_size)
        self.max_new_tokens = max_new_tokens
        self.style = style or PromptStyle()
        self.shares: dict[bool, bool] = {} if share_prefix else {True: False, False: False}
        """Whether prompts with a picture (True) and without (False) are shared; absent until checked."""

    def answers(self, samples: Sequence[Sample]) -> list[Answers]:
        """The model's answers to samples that are all multimodal or all text-only.

        Raises:
            ModelError: if memory does not suffice for even one of them.
        """
        return self.batches.run(self._batch_of_answers, samples)

    def generations(self, samples: Sequence[Sample]) -> list[str]:
        """The model's greedy answers to samples that are all multimodal or all text-only.

        Raises:
            ModelError: if memory does not even do for one of them.
        """
        return self.batches.run(lambda batch: self._generate(batch)[0], samples)

    def _batch_of_answers(self, samples: Sequence[Sample]) -> list[Answers]:
        generations, prefix = self._generate(samples)
        candidates = [_candidates(sample) for sample in samples]
        kind = samples[0].image_bytes is not None
        scores = self._shared(samples, candidates, prefix, kind) if prefix is not None else None
        if scores is None:
            scores = self._separate(samples, candidates)
        return [Answers(text, of_texts) for text, of_texts in zip(generations, scores, strict=True)]

    def _generate(self, samples: Sequence[Sample]) -> tuple[list[str], Prefix | None]:
        prompts = self.style.prompts(self.processor, samples)
        tokenizer = self.processor.tokenizer
        batch = to_device(collate(prompts, tokenizer.pad_token_id, side="left"), self.model.device)
        if len(samples) > 1 and not supports_batches(self.model, batch):
            return [self._generate([sample])[0][0] for sample in samples], None
        result = self.model.generate(  # type: ignore[operator]  # a mixin that transformers adds to the class
            **model_inputs(self.model, batch),
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
        )
        tokens = result.sequences[:, batch["input_ids"].shape[1] :]
        texts = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        bare = all(map(self.style.is_bare, samples))
        if not bare or not self.shares.get(samples[0].image_bytes is not None, True):
            return texts, None
        return texts, prefix_of(self.model, batch, result.past_key_values, tokens.shape[1])

    def _shared(
        self,
        samples: Sequence[Sample],
        candidates: Sequence[Sequence[str]],
        prefix: Prefix,
        kind: bool,
    ) -> list[dict[str, TokenScores]] | None:
        tokens = [
            answer_tokens(self.processor, sample.question, texts, image=len(sample.encoded_images))
            for sample, texts in zip(samples, candidates, strict=True)
        ]
        flat = [(row, ids) for row, answers in enumerate(tokens) for ids in answers or ()]
        if None in tokens:
            return None
        if kind not in self.shares:
            self.shares[kind] = self._agrees(samples, candidates, prefix, flat)
            if not self.shares[kind]:
                return None
        scores = iter(score_after(self.model, prefix, flat, batch_size=self.batches.size))
        return [{text: next(scores) for text in texts} for texts in candidates]

    def _agrees(
        self,
        samples: Sequence[Sample],
        candidates: Sequence[Sequence[str]],
        prefix: Prefix,
        flat: Sequence[tuple[int, Sequence[int]]],
    ) -> bool:
        """Whether answers to the shortest and the longest question get the same scores both ways."""
        lengths = prefix.batch["attention_mask"].sum(dim=1).tolist()
        order = sorted(range(len(samples)), key=lengths.__getitem__)
        probed = sorted({order[0], order[-1]})[:_PROBED]
        firsts = [next(answer for answer in flat if answer[0] == row) for row in probed]
        shared = score_after(self.model, prefix, firsts, batch_size=self.batches.size)
        whole = self._separate([samples[i] for i in probed], [candidates[i][:1] for i in probed])
        tolerance = _TOLERANCE.get(self.model.dtype, _COARSE)
        return all(
            len(first.logprobs) == len(second.logprobs)
            and max(abs(a - b) for a, b in zip(first.logprobs, second.logprobs, strict=True)) <= tolerance
            for first, second in zip(shared, (next(iter(scores.values())) for scores in whole), strict=True)
        )

    def _separate(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]]
    ) -> list[dict[str, TokenScores]]:
        """Score every answer with its whole prompt: slower, but correct for any family."""
        pairs = [
            replace(sample, answer=text)
            for sample, texts in zip(samples, candidates, strict=True)
            for text in texts
        ]
        size = self.batches.size
        batches = (pairs[start : start + size] for start in range(0, len(pairs), size))
        score_iterator = (score for batch in batches for score in self.answer_scores(batch))
        return [{text: next(score_iterator) for text in texts} for texts in candidates]

    def answer_scores(self, pairs: Sequence[Sample]) -> list[TokenScores]:
        """Scores of the samples' own answers, in one batch."""
        rows: list[Inputs] = encode(self.processor, pairs)
        batch = to_device(collate(rows, self.processor.tokenizer.pad_token_id), self.model.device)
        labels = batch.pop("labels")
        return token_scores(forward(self.model, batch).logits[:, :-1], labels[:, 1:])


def _answers(scorer: Scorer, samples: Sequence[Sample], cache: ResultCache | None) -> list[Answers]:
    """The answers to one batch, from the cache if it has them."""
    stored = cache.load(samples) if cache is not None else None
    if stored is not None:
        return [
            Answers(
                row["generation"], {text: TokenScores(**scores) for text, scores in row["scores"].items()}
            )
            for row in stored
        ]
    answers = scorer.answers(samples)
    _check_finite(samples, answers)
    if cache is not None:
        cache.save(samples, [asdict(answer) for answer in answers])
    return answers


def _candidates(sample: Sample) -> list[str]:
    """Every answer to score, once."""
    rewordings = [sample.paraphrase] if sample.paraphrase else []
    return list(
        dict.fromkeys([sample.answer, *rewordings, *(sample.wrong_answers or ()), *(sample.options or ())])
    )


def _check_finite(samples: Sequence[Sample], answers: Sequence[Answers]) -> None:
    for sample, answer in zip(samples, answers, strict=True):
        for text, scores in answer.scores.items():
            if not all(math.isfinite(value) for value in (*scores.logprobs, *scores.zscores)):
                raise ModelError(
                    f"the model gives the answer {text!r} to sample {sample.sample_id} a log-"
                    f"probability that is not a finite number ({scores.logprobs}), so it cannot be scored; "
                    "its weights are damaged or have diverged: rebuild the model, with a smaller "
                    "learning rate if training diverged"
                )


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Indices in batches, multimodal and text-only apart, short questions together."""
    for multimodal in (True, False):
        indices = [i for i, sample in enumerate(samples) if (sample.image_bytes is not None) == multimodal]
        indices.sort(key=lambda i: len(samples[i].question))
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _row(sample: Sample, answers: Answers) -> dict[str, Any]:
    scores, gold = answers.scores, answers.scores[sample.answer]
    logprobs = [-scores[option].nll for option in sample.options or ()]
    wrong = [scores[text].nll for text in sample.wrong_answers or ()]
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
        "generation": answers.generation,
        "nll_gold": gold.nll,
        "n_tokens": len(gold.logprobs),
        "nll_paraphrase": scores[sample.paraphrase].nll if sample.paraphrase else None,
        "nll_wrong": wrong or None,
        "token_logprobs": gold.logprobs,
        "token_ranks": gold.ranks,
        "token_zscores": gold.zscores,
        "options": list(sample.options) if sample.options else None,
        "option_logprobs": logprobs or None,
        "correct": sample.options[choice(logprobs)] == sample.answer if sample.options else None,
    }
    return row | {name: metric.value_of(row) for name, metric in STORED.items()}
