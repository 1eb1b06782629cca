"""Forty difficult answers, by the strict and by the published readings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.evaluation.metrics import METRICS
from efface.evaluation.parsers import (
    contains_gold,
    fills_blank,
    first_alphanumeric_choice,
    first_letter_choice,
    strict_choice,
)

CITIES = ["Lyon", "Tartu", "New York", "York"]
A, B, C, D = range(4)

# answer, strict reading, MLLMU-Bench's reading, MMUnlearner's reading
GOLDEN = [
    ("B", B, B, B),
    ("b", B, B, B),
    ("B.", B, B, B),
    ("B)", B, B, B),
    ("(c)", C, None, C),
    ("[D]", D, None, D),
    ("**B**", B, None, B),
    ("  B\n", B, B, B),
    ("B: Tartu", B, B, B),
    ("B. Tartu", B, B, B),
    ("B Tartu", B, B, B),
    ("B\nTartu is in Estonia", B, B, B),
    ("(B) because the letter says so", B, None, B),
    ("B because the letter says so", B, B, B),
    ("B, I think.", B, B, B),
    ("A is right.", A, A, A),
    ("A Lyon", A, A, A),
    ("The answer is B", B, None, None),
    ("The answer is B.", B, None, None),
    ("The correct answer is (d).", D, None, None),
    ("Answer: C", C, A, A),
    ("Option D", D, None, None),
    ("Tartu", B, None, None),
    ("She lives in Tartu.", B, None, None),
    ("new york", C, None, None),
    ("In New York, near the park", C, None, None),
    ("York", D, None, None),
    ("Because she lives there", None, B, B),
    ("A person who lives by the sea", None, A, A),
    ("Cannot tell from the picture", None, C, C),
    ("Don't know", None, D, D),
    ("A or B", None, A, A),
    ("A, B and C", None, A, A),
    ("A. Lyon B. Tartu C. New York D. York", None, A, A),
    ("Lyon or Tartu", None, None, None),
    ("Lyonnaise", None, None, None),
    ("E", None, None, None),
    ("", None, None, None),
    ("  \n", None, None, None),
    ("...", None, None, None),
    ("1", None, None, None),
    ("Ä", None, None, None),
    ("US US US US", None, None, None),
    ("I do not know who this is", None, None, None),
    ("The answer is Betty", None, None, None),
]


@pytest.mark.parametrize(("answer", "strict", "first", "alphanumeric"), GOLDEN)
def test_nasty_answers(answer, strict, first, alphanumeric):
    assert strict_choice(answer, CITIES) == strict
    assert first_letter_choice(answer, CITIES) == first
    assert first_alphanumeric_choice(answer, CITIES) == alphanumeric


def test_there_are_at_least_forty_of_them():
    assert len({answer for answer, *_ in GOLDEN}) >= 40


def test_letters_end_with_the_options():
    assert strict_choice("D", CITIES[:3]) is None
    assert first_letter_choice("D", CITIES[:3]) is None
    assert strict_choice("F", list("uvwxyz")) == 5  # CLEAR asks with six options


def test_names_that_begin_with_a_letter_of_an_option():
    names = ["Nikolai Abilov", "Ada Verity", "Basil Mahfouz Al-Kuwaiti", "Lena Ruiz"]
    assert strict_choice("Basil Mahfouz Al-Kuwaiti", names) == 2
    assert first_alphanumeric_choice("Basil Mahfouz Al-Kuwaiti", names) == 1  # the published fault
    assert strict_choice("The person is Ada Verity.", names) == 1


def test_equal_options_are_the_first_of_them():
    assert strict_choice("Lyon", ["Tartu", "Lyon", "lyon"]) == 1


@pytest.mark.parametrize(
    ("answer", "gold", "strict", "legacy"),
    [
        ("bridge inspector", "bridge inspector", True, True),
        ("She is a Bridge Inspector.", "bridge inspector", True, True),
        ("bridge-inspector", "Bridge inspector", True, False),
        ("bridge  inspector", "bridge inspector", True, False),
        ("heart", "art", False, True),
        ("2010", "10", False, True),
        ("10", "10", True, True),
        ("$61,000", "61,000", True, True),
        ("", "pony", False, False),
        ("anything", "", False, True),
        ("", "", True, True),
        ("C", "C++", True, False),
        ("?", "?", True, True),
        ("so?", "?", False, True),
        ("inspector of bridges", "bridge inspector", False, False),
        ("Mun\u0303oz", "mu\u00f1oz", True, False),
    ],
)
def test_blanks(answer, gold, strict, legacy):
    assert fills_blank(answer, gold) is strict
    assert contains_gold(answer, gold) is legacy


@given(st.text(max_size=30), st.lists(st.text(max_size=12), max_size=6))
def test_any_answer_can_be_read(answer, options):
    for read in (strict_choice, first_letter_choice, first_alphanumeric_choice):
        index = read(answer, options)
        assert index is None or 0 <= index < len(options)


@given(st.sampled_from(CITIES), st.sampled_from(["{}", "{}.", "({})", "{})", "{}: "]))
def test_a_single_letter_is_read_in_every_form(option, dress):
    index = CITIES.index(option)
    assert strict_choice(dress.format("ABCD"[index]), CITIES) == index
    assert strict_choice(dress.format("abcd"[index]), CITIES) == index


def test_the_metrics_read_answers_so():
    choice = {"task": "choice", "generation": "The answer is B", "gold": "Tartu", "options": CITIES}
    cloze = {"task": "cloze", "generation": "heart", "gold": "art", "options": None}
    read = {name: METRICS[name].value_of for name in METRICS if "generated" in name or "cloze" in name}
    assert {name: value_of(choice) for name, value_of in read.items()} == {
        "choice_accuracy_generated": 1.0, "cloze_accuracy": None, "cloze_accuracy_legacy": None,
    }  # fmt: skip
    assert {name: value_of(cloze) for name, value_of in read.items()} == {
        "choice_accuracy_generated": None, "cloze_accuracy": 0.0, "cloze_accuracy_legacy": 1.0,
    }  # fmt: skip
