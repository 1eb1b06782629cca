"""People's names: compared however they are typed, and substituted for "this person"."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from efface.errors import DataError

_PERSON = re.compile(r"\b(?:this|the) (?:person|individual)\b", re.IGNORECASE)
_THIS_PERSON = re.compile(r"\bthis (?:person|individual)\b", re.IGNORECASE)
_NAME_QUESTION = re.compile(
    r"\b(?:person|individual)(?:'s|’s) (?:full |first |last )?name\b"
    r"|\bnames? of (?:this|the) (?:person|individual)\b"
    r"|\b(?:which|what) name\b|(?<!\bof )\b(?:this|the) (?:person|individual) (?:is )?(?:called|named)\b"
    r"|\bwho is (?:this|the) (?:person|individual)\b|\bidentify (?:this|the) (?:person|individual)\b",
    re.IGNORECASE,
)

# Cyrillic and Greek letters that look like Latin ones, in small or capital letters.
_LOOKALIKES = str.maketrans("авекмнорстухіјѕαβεζηικμνορτυχ", "abekmhopctyxijsabezhikmnoptyx")


_TITLES = {"dr", "dame", "lady", "lord", "miss", "mr", "mrs", "ms", "prof", "professor", "sir"}


def name_key(name: str) -> str:
    """A key that ignores the Unicode form, case, and kind and number of spaces of a name."""
    letters = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return " ".join("".join(letters).casefold().split())


def similarity_key(name: str) -> str:
    """A key that also ignores accents and lookalike letters and, in names without digits, punctuation."""
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", name_key(name)) if not "\u0300" <= c <= "\u036f"
    ).translate(_LOOKALIKES)
    if any(map(str.isdigit, letters)):
        return letters
    return "".join(c for c in letters if unicodedata.category(c)[0] in "LM")


def _unordered_key(name: str) -> str:
    """A key that also ignores the order of words and titles (`Stone, Dr Ada` and `Ada Stone`) and what
    spreadsheets make of a number (007 and 7 and 7.0)."""
    key = name_key(name.partition("/")[2] or name)
    if number := re.fullmatch(r"(\d+)(?:\.0+)?", key):
        return number[1].lstrip("0") or "0"
    if any(map(str.isdigit, key)):
        return key
    words = sorted(filter(None, map(similarity_key, re.split(r"[\s,]+", key))))
    return " ".join([word for word in words if word not in _TITLES] or words)


def similar_people(people: Iterable[str], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of entity ids that are probably one person, spelt in several ways.

    Different ids with equal names are not grouped: the ids tell these people apart.

    Args:
        people: entity ids.
        names: entity id to name.
    """
    spellings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for person in people:
        for spelling in (person, names.get(person, person)):
            for key in {similarity_key(spelling), _unordered_key(spelling)}:
                spellings[key][spelling].add(person)
    groups = {tuple(sorted(set().union(*ids.values()))) for ids in spellings.values() if len(ids) > 1}
    return sorted(group for group in groups if len(group) > 1)


def resolve_people(
    typed: Iterable[str], people: Iterable[str], names: Mapping[str, str], *, key: str = "forget_people"
) -> list[str]:
    """Entity ids of people named by id, with or without its namespace, or by name.

    Args:
        typed: ids or names, in any Unicode form, case and spacing.
        people: entity ids to choose from.
        names: entity id to name.
        key: the parameter that lists the people, for errors.

    Raises:
        DataError: if one of them matches no person, or several.
    """
    people = sorted(people)
    by_key: dict[str, set[str]] = defaultdict(set)
    for person in people:
        for spelling in (person, person.partition("/")[2], names.get(person, person)):
            by_key[name_key(spelling)].add(person)
    entities: list[str] = []
    for name in typed:
        matches = {name} if name in people else by_key[name_key(name)]
        if len(matches) != 1:
            which = f"several people: {', '.join(sorted(matches))}" if matches else "no person"
            raise DataError(
                f"{key}: {name!r} matches {which}; expected the id of one of {', '.join(people[:10])}, ..."
            )
        entities += matches
    return entities


def text_rendering(question: str, name: str) -> str | None:
    """The question without its picture: the person's name in place of "this person" and the like.

    None if the question asks for the name itself, or mentions no person.
    """
    if asks_for_name(question):
        return None
    return question if name in question else (named(question, name) if _PERSON.search(question) else None)


def named(text: str, name: str) -> str:
    """The text with the person's name in place of "this person", "the individual" and the like."""
    return _PERSON.sub(lambda _: name, text)


def asks_for_name(question: str) -> bool:
    """Whether the question asks who the person is."""
    return _NAME_QUESTION.search(question) is not None


def names_no_person(question: str, name: str) -> bool:
    """Whether a question without a picture says "this person" and not who that is."""
    return _THIS_PERSON.search(question) is not None and name_key(name) not in name_key(question)
