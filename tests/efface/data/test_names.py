"""Names are compared however they are typed, and substituted for "this person"."""

import unicodedata

import pytest

from efface.data.names import (
    asks_for_name,
    name_key,
    named,
    resolve_people,
    similar_people,
    text_rendering,
)
from tests.efface.data.conftest import refusal

ZOE = unicodedata.normalize("NFC", "Zoë Stone")
SAME = [
    unicodedata.normalize("NFD", ZOE),
    ZOE.replace(" ", "\u00a0"),  # no-break space
    ZOE.replace(" ", "\u2003"),  # em space
    ZOE.replace(" ", "  "),
    f" {ZOE}\t",
    ZOE.upper(),
    ZOE.replace("S", "\uff33"),  # full-width S
    ZOE[:2] + "\u200b" + ZOE[2:],  # zero-width space
    ZOE + "\ufeff",
]


@pytest.mark.parametrize("spelling", SAME)
def test_one_name_in_several_forms_has_one_key_and_matches(spelling):
    assert spelling != ZOE
    assert name_key(spelling) == name_key(ZOE)
    people = ["person/042", "person/Ada Verity"]
    assert resolve_people([spelling], people, {"person/042": ZOE}) == ["person/042"]


@pytest.mark.parametrize("spelling", [*SAME, "Zoe Stone", "Zoë-Stone", "ZoëStone"])
def test_one_name_in_several_forms_is_one_group(spelling):
    people = [f"person/{ZOE}", f"person/{spelling}", "person/Ada Verity"]
    assert similar_people(people, {}) == [tuple(sorted(people[:2]))]
    assert similar_people(["person/1", "person/2"], {"person/1": ZOE, "person/2": spelling}) == [
        ("person/1", "person/2")
    ]


@pytest.mark.parametrize("spelling", ["Stone, Zoë", "Stone Zoe", "Z\u043e\u0451 Stone", "\u0396oe Stone"])
def test_lookalike_letters_and_another_order_make_no_second_person(spelling):
    people = [f"person/{ZOE}", f"person/{spelling}", "person/Ada Verity"]
    assert similar_people(people, {}) == [tuple(sorted(people[:2]))]
    assert similar_people(["person/1", "person/2"], {"person/1": ZOE, "person/2": spelling}) == [
        ("person/1", "person/2")
    ]


NUMBERS = [("7", "007"), ("7", "7.0"), ("042", "42.00"), ("0", "000"), ("7", "\uff17")]
TITLES = [("Ada Stone", "Dr. Ada Stone"), ("Ada Stone", "Stone, Prof Ada"), ("Mr Bo Dahl", "Dr Bo Dahl")]


@pytest.mark.parametrize(("one", "other"), [*NUMBERS, *TITLES])
def test_what_spreadsheets_make_of_an_id_and_titles_make_no_second_person(one, other):
    people = sorted([f"person/{one}", f"person/{other}"])
    assert similar_people([*people, "person/Ada Verity", "person/70"], {}) == [tuple(people)]


def test_different_people_are_not_grouped():
    people = [
        "p/1 12",
        "p/12 1",
        "p/1-12",
        "p/11-2",
        "p/112",
        "p/1.5",
        "p/15",
        "p/Miss",
        "p/Sir",
        "p/John Stone Jr",
        "p/John Stone Sr",
        "p/Ada Stone",
        "p/Ada Stones",
        "p/はな",
        "p/ばな",
    ]
    assert similar_people(people, {"p/1-12": "Ann Lee", "p/11-2": "Ann Lee"}) == []


def test_people_are_resolved_by_id_and_by_name():
    people = ["fictitious/001", "fictitious/002", "fictitious/003"]
    names = {"fictitious/001": "Ann Lee", "fictitious/002": "Bo Dahl", "fictitious/003": "Ann Lee"}
    assert resolve_people(["fictitious/003", "001", "bo dahl"], people, names) == [
        "fictitious/003",
        "fictitious/001",
        "fictitious/002",
    ]
    with refusal("'Ann Lee'", "fictitious/001, fictitious/003"):
        resolve_people(["Ann Lee"], people, names)
    with refusal("'Zoe'", "no person", "fictitious/001"):
        resolve_people(["Zoe"], people, names)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("What is this person's pet?", "What is Mara Velin's pet?"),
        ("Where does the individual live?", "Where does Mara Velin live?"),
        ("This person has the pet __.", "Mara Velin has the pet __."),
        ("Name the pet of this person.", "Name the pet of Mara Velin."),
        ("What is the pet of this person called?", "What is the pet of Mara Velin called?"),
        ("Where was Mara Velin born?", "Where was Mara Velin born?"),
        ("What is this person's name?", None),
        ("What is the full name of the individual?", None),
        ("Who is this person?", None),
        ("What is this person called?", None),
        ("What colour is the sky?", None),
    ],
)
def test_the_text_rendering_names_the_person(question, text):
    assert text_rendering(question, "Mara Velin") == text


def test_names_are_put_in_as_they_are():
    assert named("This person's cat", r"A\1 \g<0>") == r"A\1 \g<0>'s cat"
    assert named("A cat.", "Mara Velin") == "A cat."


def test_asking_for_the_name_is_told_from_asking_about_the_person():
    assert asks_for_name("Can you tell me the name of the person?")
    assert not asks_for_name("Name the favourite food of this person.")
