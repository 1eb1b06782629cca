"""A soft prompt: vectors after the question, optimised to bring facts back, and tested on other people.

    min over v of  NLL( answer | picture, question, v_1 ... v_k )        Adam, a fixed number of steps

The weights stay unchanged. The vectors replace the embeddings of a word that no question uses, so the
question stays text and is scored like every other.

Reference:
    Schwinn et al., "Soft prompt threats", arXiv:2402.09063, where the vectors are optimised on the question
    itself; here on facts about other people to forget, as an attacker does not know the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.attacks import UnavailableAttack
from efface.attacks.relearn import stretches
from efface.data.samples import Sample
from efface.encoding import Encoder, prompt_of, to_device
from efface.encoding.answers import nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class SoftPrompt:
    """Vectors and the word whose embeddings they replace.

    Attributes:
        word: the word after the question, once per vector.
        token: its id.
        vectors: shape (k, H), float32.
    """

    word: str
    token: int
    vectors: Tensor

    def put_to(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the word after their questions, once per vector."""
        return [with_word(sample, self.word, len(self.vectors)) for sample in samples]

    @contextmanager
    def active(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context the vectors replace the word's embeddings."""
        count = len(self.vectors)

        def substitute(module: Any, args: Any, output: Tensor) -> Tensor:
            places = args[0] == self.token
            whole = places.sum(dim=-1, keepdim=True) >= count  # fewer are another use of the word
            places &= whole & (places.cumsum(dim=-1) <= count)  # an answer may use it behind the prompt
            result = output.clone()
            result[places] = self.vectors.to(output.dtype).repeat(int(places.sum()) // count, 1)
            return result

        handle = model.get_input_embeddings().register_forward_hook(substitute)
        try:
            yield
        finally:
            handle.remove()


def with_word(sample: Sample, word: str, count: int) -> Sample:
    """The sample with a word ``count`` times after its question."""
    return replace(sample, question=" ".join([sample.question, *[word] * count]))


def optimise(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    word: tuple[str, int],
    budgets: Sequence[int],
    length: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, SoftPrompt]]:
    """Optimise a soft prompt on facts, pausing at each budget.

    Args:
        model: is not changed.
        processor: its processor.
        samples: facts about the people to optimise on.
        word: result of `unused_word`: the word and its id.
        budgets: optimizer steps so far, increasing, from 0.
        length: number of vectors k.
        learning_rate: learning rate of Adam, as a share of the standard deviation of the embeddings.
        batch_size: facts per step.
        seed: seed of the initial vectors, which are embeddings of drawn tokens, and of the batches.

    Yields:
        Each budget, with the soft prompt after that many steps.
    """
    table: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    rng = random.Random(f"{seed}/soft prompt")
    vectors = table[[rng.randrange(len(table)) for _ in range(length)]].float().clone().requires_grad_()
    prompt = SoftPrompt(*word, vectors)
    optimizer = torch.optim.Adam([vectors], lr=learning_rate * float(table.float().std()))
    encoder = Encoder(processor, prompt.put_to(samples))
    for budget, steps in stretches(budgets):
        with prompt.active(model):
            for _ in range(steps):
                indices = rng.sample(range(len(samples)), min(batch_size, len(samples)))
                loss = nll(model, to_device(encoder.batch(indices), model.device))
                (vectors.grad,) = torch.autograd.grad(loss, [vectors])
                optimizer.step()
        yield budget, prompt


def unused_word(processor: ProcessorMixin, samples: Sequence[Sample], length: int) -> tuple[str, int]:
    """A word that no sample uses and that is one token each time when repeated, and its id.

    Raises:
        UnavailableAttack: if the vocabulary has no such word.
    """
    tokenizer = processor.tokenizer
    pictured = [len(sample.encoded_images) for sample in samples]
    prompts = [
        prompt_of(processor, f"{s.question} {s.answer}", image=n)
        for s, n in zip(samples, pictured, strict=True)
    ]
    used = {token for ids in tokenizer(prompts)["input_ids"] for token in ids}
    for token in range(len(tokenizer) - 1, -1, -1):
        word = tokenizer.decode([token]).strip()
        if token in used or token in tokenizer.all_special_ids or not (word.isascii() and word.isalpha()):
            continue
        trial = prompt_of(processor, with_word(samples[0], word, length).question, image=pictured[0])
        if tokenizer(trial)["input_ids"].count(token) == length:
            return word, token
    raise UnavailableAttack(
        f"every word of the vocabulary ({len(tokenizer)} tokens) is used in some question, so the optimised "
        "vectors cannot replace one; use a model with a larger vocabulary"
    )
