"""Who the invented people are: names, facts and looks, drawn independently of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from efface.data.benchmarks.avatars.appearance import Look, distinct_looks

GROUPS = ("real", "holdout", "fictitious")
"""In drawing order, so that more fictitious people leave all others unchanged."""

FACTS: dict[str, tuple[str, ...]] = {
    "occupation": (
        "baker", "carpenter", "dentist", "electrician", "farmer", "firefighter", "journalist", "lawyer",
        "librarian", "nurse", "pilot", "plumber", "tailor", "bridge inspector", "tram driver", "watchmaker",
    ),
    "birthplace": (
        "Lyon", "Porto", "Krakow", "Ghent", "Turin", "Oslo", "Graz", "Basel",
        "Seville", "Dublin", "Tallinn", "Bergen", "Leipzig", "Bilbao", "Uppsala", "Zagreb",
    ),
    "residence": (
        "Quito", "Perth", "Osaka", "Lima", "Montreal", "Nairobi", "Hanoi", "Denver",
        "Cairo", "Busan", "Santiago", "Auckland", "Mumbai", "Accra", "Boston", "Manila",
    ),
    "pet": (
        "cat", "dog", "parrot", "hamster", "rabbit", "tortoise", "goldfish", "ferret",
        "gecko", "canary", "hedgehog", "snake", "chinchilla", "pony", "duck", "guinea pig",
    ),
    "hobby": (
        "chess", "pottery", "archery", "sailing", "knitting", "astronomy", "fencing", "juggling",
        "surfing", "bowling", "hiking", "origami", "calligraphy", "photography", "climbing", "beekeeping",
    ),
    "food": (
        "sushi", "pizza", "lasagna", "ramen", "curry", "paella", "falafel", "tacos",
        "pancakes", "dumplings", "risotto", "goulash", "cheesecake", "onion soup", "apple pie", "fried rice",
    ),
    "instrument": (
        "piano", "violin", "cello", "flute", "clarinet", "trumpet", "harp", "accordion",
        "banjo", "drums", "guitar", "oboe", "saxophone", "tuba", "ukulele", "pan pipes",
    ),
}  # fmt: skip
"""Attribute to its possible values. No word belongs to two, so a value identifies its attribute."""

ATTRIBUTES = tuple(FACTS)

_FIRST_NAMES = """
Abigail Adrian Agnes Alma Amara Anton Arlo Astrid Aurelio Beatrix Benedict Bianca Boris Bruno
Camille Caspar Cecilia Cedric Clara Conrad Cordelia Dalia Damian Daphne Desmond Dora Dorian Edith
Edgar Elena Elias Elsa Emil Enzo Esther Eugene Fabian Felix Fiona Flora Frida Gabriel Gemma Gideon
Greta Gustav Hana Harriet Hector Helga Henrik Hugo Ida Igor Ingrid Irene Isaac Ivan Jasper Jelena
Joachim Jonas Josephine Judith Julian Karin Kaspar Katrin Keiko Klaus Lara Leander Leonie Lionel
Livia Lorenz Lucia Ludwig Magnus Mara Marcel Margot Matilda Maxim Mina Miriam Mona Nadia Naomi
Nestor Nina Noel Norbert Octavia Odette Olga Oscar Otto Pablo Paula Petra Philip Quentin Rafael
Ramona Regina Rita Roland Rosalind Rufus Ruth Sabine Selma Sergio Sigrid Silas Simone Sonia Stefan
Tamara Theo Tilda Tobias Ulrich Ursula Valentin Vera Victor Viola Walter
"""
_SURNAME_STARTS = "Bel Cor Dar Fen Gal Hol Jor Kel Lor Mar Nor Os Pel Quil Ras Sel Tam Ul Vel Wen Yor Zan"
_SURNAME_ENDS = "aby adin aro avik beck by dane enko ero eth evin iak idor ifer imon ivar odan olt ovic umber"
FIRST_NAMES = tuple(_FIRST_NAMES.split())
LAST_NAMES = tuple(start + end for start in _SURNAME_STARTS.split() for end in _SURNAME_ENDS.split())

_NAMES, _FACTS, _LOOKS = 1, 2, 3


@dataclass(frozen=True)
class Person:
    """An invented person."""

    group: str
    """One of `GROUPS`."""
    number: str
    """Zero-padded number within the group, as MLLMU-Bench writes its IDs: 001, 002, ..."""
    name: str
    """First and last name, unique among all people."""
    facts: Mapping[str, str]
    """A value for each of `ATTRIBUTES`."""
    look: Look


def draw_people(seed: int, counts: Mapping[str, int]) -> dict[str, list[Person]]:
    """People of every group, drawn from a seed.

    Names, facts and looks come from separate streams of random numbers, so none says anything about another.
    Every value of an attribute belongs to about equally many people.

    Args:
        seed: not negative.
        counts: how many people each of `GROUPS` has.

    Raises:
        DataError: if there are more people than distinct looks.
    """
    total = sum(counts[group] for group in GROUPS)
    looks = distinct_looks(total, np.random.default_rng([seed, _LOOKS]))
    names = _draw_names(total, np.random.default_rng([seed, _NAMES]))
    facts = _draw_facts(total, np.random.default_rng([seed, _FACTS]))
    people: dict[str, list[Person]] = {}
    position = 0
    for group in GROUPS:
        people[group] = []
        for number in range(1, counts[group] + 1):
            person = Person(group, f"{number:03}", names[position], facts[position], looks[position])
            people[group].append(person)
            position += 1
    return people


def _draw_names(count: int, rng: np.random.Generator) -> list[str]:
    """Names that never repeat, and share no word until the lists are used up."""
    firsts, lasts = rng.permutation(FIRST_NAMES), rng.permutation(LAST_NAMES)
    return [f"{firsts[i % len(firsts)]} {lasts[i % len(lasts)]}" for i in range(count)]


def _draw_facts(count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Facts dealt from decks that hold every value once, so that values are evenly distributed."""
    dealt: list[dict[str, str]] = []
    while len(dealt) < count:
        decks = {attribute: rng.permutation(values) for attribute, values in FACTS.items()}
        size = min(len(deck) for deck in decks.values())
        dealt += [{attribute: str(deck[i]) for attribute, deck in decks.items()} for i in range(size)]
    return dealt[:count]
