"""Pure functions of generated texts: whether one states the fact, how much it overlaps with a reference, and
whether it is an answer at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

REFUSALS = (
    "i do not know",
    "i don t know",
    "i do not have",
    "i don t have",
    "i have no",
    "i am not able",
    "i m not able",
    "i am unable",
    "i m unable",
    "i am not sure",
    "i m not sure",
    "i am not familiar",
    "i m not familiar",
    "i am not aware",
    "i m not aware",
    "i cannot",
    "i can not",
    "i can t",
    "i could not",
    "i couldn t",
    "i am sorry",
    "i m sorry",
    "sorry",
    "unfortunately i",
    "as an ai",
    "that s not something i",
    "that is not something i",
    "it is not possible to",
    "there is no information",
)
"""Normalised beginnings of a refusal: no capitals, no punctuation."""

SENTENCE_TASKS = ("generation", "caption")
_NOT_WORD = re.compile(r"[^\w\s]|_")
_REPEATS = 4
_LONGEST_LOOP = 4


def normalise(text: str) -> str:
    """The form in which facts are compared: lower case, no punctuation, single spaces."""
    composed = unicodedata.normalize("NFC", text.lower())  # otherwise a separate accent counts as punctuation
    return " ".join(_NOT_WORD.sub(" ", composed).split())


def exact_match(generation: str, gold: str) -> float:
    """1.0 if the normalised generation is the normalised gold, else 0.0."""
    return float(normalise(generation) == normalise(gold))


@lru_cache(maxsize=1 << 14)  # several metrics read one comparison
def rouge(generation: str, gold: str) -> dict[str, Any]:
    """ROUGE with stemming by the rouge-score package, the gold answer as the target.

    Returns:
        ``rouge1``, ``rouge2`` and ``rougeL`` to ``precision``, ``recall`` and ``fmeasure``, in [0, 1]; an
        empty generation scores 0.
    """
    scores: dict[str, Any] = _scorer().score(gold, generation)
    return scores


def rouge_l(generation: str, gold: str) -> float:
    """ROUGE-L F-measure with stemming, in [0, 1]; an empty generation scores 0."""
    return float(rouge(generation, gold)["rougeL"].fmeasure)


def bleu(generation: str, gold: str) -> float:
    """Sentence BLEU of the sacrebleu package divided by 100, in [0, 1].

    With effective order, as sacrebleu advises for sentences: orders beyond the longest matching n-gram do not
    count, so a one-word answer can score 1.
    """
    score: float = _bleu().sentence_score(generation, [gold]).score / 100
    return min(max(score, 0.0), 1.0)  # sacrebleu sums logarithms: a perfect text may score 100.00000000000004


def is_fluent(generation: str, task: str) -> bool:
    """Whether a generation is an answer at all, right or wrong.

    It contains a word, has the expected form (two words or more for a sentence, otherwise a single line), and
    repeats no word, nor phrase of up to four words, four times in a row.
    """
    words = normalise(generation).split()
    if not words or (task in SENTENCE_TASKS and len(words) < 2):
        return False
    if task not in SENTENCE_TASKS and "\n" in generation.strip():
        return False
    return not any(_loops(words, length) for length in range(1, _LONGEST_LOOP + 1))


def is_refusal(generation: str) -> bool:
    """Whether a generation begins with one of `REFUSALS`; case and punctuation do not count."""
    start = f"{normalise(generation)} "
    return any(start.startswith(f"{line} ") for line in REFUSALS)


def _loops(words: Sequence[str], length: int) -> bool:
    run = 0
    for i in range(length, len(words)):
        run = run + 1 if words[i] == words[i - length] else 0
        if run >= (_REPEATS - 1) * length:
            return True
    return False


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
