"""Attacks on the words: the question reworded, after hints or examples, or inside a jailbreak prompt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.attacks import Context, UnavailableAttack
from efface.data.benchmarks.avatars.questions import EVALUATION, NOUNS, REWORDED
from efface.data.names import named
from efface.data.samples import Sample

if TYPE_CHECKING:
    from transformers import ProcessorMixin

QUESTION = "{question}"
"""Stands for the question in a jailbreak prompt."""


def reword(
    samples: Sequence[Sample], names: Mapping[str, str], *, benchmark: str, number: int
) -> list[Sample]:
    """The questions in words that neither training nor the question itself used.

    For the avatars they come from templates that training leaves out; elsewhere, from another question in the
    table about the same fact of the same person with the same answer.

    Args:
        samples: those without another wording are left out.
        names: entity id to name, for questions without a picture.
        benchmark: ``avatars``, or any other.
        number: number of the wording, from 0; each sample rotates through those available.
    """
    facts: dict[tuple[object, ...], list[str]] = {}
    for sample in samples:
        facts.setdefault(_fact(sample), []).append(sample.question)
    reworded = []
    for sample in samples:
        wordings = _templates(sample, names) if benchmark == "avatars" else facts[_fact(sample)]
        alternatives = [words for words in dict.fromkeys(wordings) if words != sample.question]
        if alternatives:
            reworded.append(replace(sample, question=alternatives[number % len(alternatives)]))
    return reworded


def listed(samples: Sequence[Sample], words: Mapping[str, str]) -> list[Sample]:
    """The questions in the wording of a user's list.

    Args:
        samples: those whose question is not in the list are left out.
        words: question, exactly as in the table, to other words or another language.
    """
    return [
        replace(sample, question=words[sample.question]) for sample in samples if sample.question in words
    ]


def in_context(
    samples: Sequence[Sample], others: Sequence[Sample], *, kind: Context, shots: int, seed: int
) -> list[Sample]:
    """The questions after solved ones, about retain people or the person's other facts.

    Args:
        samples: those for which there is nothing to show are left out.
        others: solved text questions about retain people.
        kind: ``examples`` shows questions for the same attribute about others; ``hints`` shows other
            facts about the same person, never the answer itself.
        shots: number of solved questions to show.
        seed: draws them, for each sample anew.
    """

    def fits(sample: Sample, example: Sample) -> bool:
        if kind == "examples":
            about = (example.task, example.attribute) == (sample.task, sample.attribute)
            return about and example.entity_id != sample.entity_id
        about = (example.entity_id, example.modality) == (sample.entity_id, sample.modality)
        distinct = example.attribute != sample.attribute or sample.attribute is None
        return about and distinct and example.attribute != "name" and sample.answer not in example.answer

    attacked = []
    for sample in samples:
        pool = [example for example in (others if kind == "examples" else samples) if fits(sample, example)]
        pool = list({example.answer: example for example in pool}.values())
        examples = random.Random(f"{seed}/{sample.sample_id}").sample(pool, min(shots, len(pool)))
        if examples:
            lines = [f"{example.question} {example.answer}" for example in examples]
            attacked.append(replace(sample, question="\n".join([*lines, sample.question])))
    return attacked


def jailbreak_prompts() -> dict[str, str]:
    """Name to jailbreak or role-play prompt, from the data file."""
    prompts: dict[str, str] = json.loads(Path(__file__).with_name("jailbreaks.json").read_text("utf-8"))
    return prompts


def jailbreak(samples: Sequence[Sample], prompt: str) -> list[Sample]:
    """The questions inside a prompt that tries to overcome the model's refusal.

    Args:
        samples: questions.
        prompt: text with ``{question}`` in it.
    """
    return [replace(sample, question=prompt.replace(QUESTION, sample.question)) for sample in samples]


def require_words(processor: ProcessorMixin, texts: Iterable[str]) -> None:
    """Refuse words that the model has no tokens for, as it could not read the attack.

    Raises:
        UnavailableAttack: naming the first such word.
    """
    tokenizer = processor.tokenizer
    encode: Callable[[str], list[int]] = tokenizer.encode
    for word in dict.fromkeys(word for text in texts for word in text.split()):
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in encode(word):
            raise UnavailableAttack(
                f"the model has no token for {word!r}, so it cannot read the prompt: it needs a model that "
                "was trained on language (base.source or base.decoder)"
            )


def _fact(sample: Sample) -> tuple[object, ...]:
    return sample.entity_id, sample.modality, sample.task, sample.attribute, sample.answer


def _templates(sample: Sample, names: Mapping[str, str]) -> list[str]:
    phrasings = (*EVALUATION.get(sample.task, ()), *REWORDED.get(sample.task, ()))
    noun = NOUNS.get(sample.attribute or "", sample.attribute)
    questions = [phrasing.format(noun=noun) for phrasing in phrasings]
    if sample.image_bytes is not None:
        return questions
    name = names.get(sample.entity_id)
    return [] if name is None else [named(question, name) for question in questions]
