"""What an answer says: which option it picks, whether it fills the blank, whether it names the person.

Each question has a strict reading, which accepts an option only if the answer states it, and the readings of
the published evaluation codes, for comparison with published numbers. Those look only at the first character,
so "Because ..." picks option B. The reading is part of a number's name.

An option is returned as its index, or None if the answer picks none.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

from efface.evaluation.texts import normalise

_NOT_ALPHANUMERIC = re.compile(r"[^a-zA-Z0-9]")
_MARKUP = re.compile(r"[*`_\"“”]+")
_LETTER = r"[(\[]?([A-Za-z])[)\]]?"
_ALONE = re.compile(rf"{_LETTER}[.):,;!]*$")
_SET_OFF = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[.):,]|[ \t]*\n))(.*)$", re.DOTALL)
_BEFORE_WORDS = re.compile(r"([A-Z])\s+(.+)$", re.DOTALL)
_ANNOUNCED = re.compile(
    r"(?:(?:the|my) )?(?:(?:correct|right|best) )?(?:answer|option|choice)(?: is)?\s*:?\s*(?:option )?"
    rf"{_LETTER}(?:[.):,;!]+|$)(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_LISTED = re.compile(r"[(\[]([A-Za-z])[)\]]|(?<!\w)([A-Z])(?=[.):,]|\s+(?:or|and)\b|\s*$)")
_VERB = re.compile(r"(?:is|because|since|seems|would)\b")
_WORDS = "AI"  # the letters that are English words


def strict_choice(answer: str, options: Sequence[str]) -> int | None:
    """Index of the option that the answer states; None for no option, several, or an unknown one.

    In this order: a letter alone ("B", "(b)"), a letter set off by a bracket, punctuation or the end of the
    line ("B) Tartu"), a letter before words ("B Tartu", "B because ..."), an announced letter ("The answer is
    B"), and the text of exactly one option as whole words. "A" before words must be followed by its option's
    text or a verb, because "A person ..." is no answer. An answer that lists several letters states none.
    """
    text = _MARKUP.sub("", answer).strip()
    for letter, rest in _stated_letters(text, options):
        index = _index(letter, options)
        if index is not None:
            listed = {(a or b).upper() for a, b in _LISTED.findall(rest)} - {letter.upper()}
            return None if any(_index(longer, options) is not None for longer in listed) else index
    return _only_option_in(text, options)


def _stated_letters(text: str, options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Letters that the text may state as its answer, most certain first, each with the text after it."""
    if match := _ALONE.match(text):
        yield match[1], ""
    if match := _SET_OFF.match(text):
        yield match[1] or match[2], match[3]
    if match := _BEFORE_WORDS.match(text):
        index = _index(match[1], options)
        repeats_option = index is not None and normalise(match[2]).startswith(normalise(options[index]))
        if match[1] not in _WORDS or repeats_option or _VERB.match(match[2]):
            yield match[1], match[2]
    if match := _ANNOUNCED.match(text):
        yield match[1], match[2]


def first_letter_choice(answer: str, options: Sequence[str]) -> int | None:
    """The reading of MLLMU-Bench's code: the first character, upper-cased, if it is a letter of an option."""
    stripped = answer.strip()
    return _index(stripped[0], options) if stripped else None


def first_alphanumeric_choice(answer: str, options: Sequence[str]) -> int | None:
    """The reading of MMUnlearner's code, for MLLMU-Bench and CLEAR: `first_letter_choice` after deleting all
    but Latin letters and digits."""
    return first_letter_choice(_NOT_ALPHANUMERIC.sub("", answer), options)


def fills_blank(answer: str, gold: str) -> bool:
    """Whether the answer contains the gold as whole words, ignoring case and punctuation.

    A gold without any letter or digit must be the whole answer.
    """
    fact = normalise(gold)
    if not fact:
        return answer.strip() == gold.strip()
    return f" {fact} " in f" {normalise(answer)} "


def contains_gold(answer: str, gold: str) -> bool:
    """The reading of MLLMU-Bench's code: the lower-cased gold is a substring of the lower-cased answer.

    So "heart" contains "art", and every answer contains an empty gold.
    """
    return gold.lower() in answer.lower()


def _index(letter: str, options: Sequence[str]) -> int | None:
    """Index of an option letter, A being the first, or None if no option has it."""
    index = string.ascii_uppercase.find(letter.upper()) if len(letter) == 1 else -1
    return index if 0 <= index < len(options) else None


def _only_option_in(answer: str, options: Sequence[str]) -> int | None:
    """The one option whose text the answer contains; "New York" does not contain the option "York"."""
    text, matches = f" {normalise(answer)} ", set()
    for option in sorted({normalise(option) for option in options}, key=len, reverse=True):
        if option and f" {option} " in text:
            matches.add(option)
            text = text.replace(f" {option} ", " | ")
    if len(matches) != 1:
        return None
    (only,) = matches
    return [normalise(option) for option in options].index(only)
