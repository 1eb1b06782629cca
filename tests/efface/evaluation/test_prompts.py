"""The published prompts, byte for byte."""

import re

import pytest

from efface.data.samples import Sample
from efface.errors import DataError
from efface.evaluation.scoring.question_prompts import draw_shots, llava_prompt, shots_for, user_turn

CITIES = ("Lyon", "Tartu", "Quito", "Perth")
PICTURED = {
    "choice": {"question": "Where does this person live?", "answer": "Tartu", "options": CITIES},
    "cloze": {"question": "This person works as a __.", "answer": "bridge inspector"},
    "generation": {"question": "What is this person's job?", "answer": "She is a bridge inspector."},
}
WRITTEN = {
    "choice": {"question": "Where does Mara Velin live?", "answer": "Tartu", "options": CITIES},
    "cloze": {"question": "Mara Velin works as a __.", "answer": "bridge inspector"},
    "generation": {"question": "What is Mara Velin's job?", "answer": "She is a bridge inspector."},
}


def asked(task, *, pictured=True, **changes) -> Sample:
    fields = (PICTURED if pictured else WRITTEN).get(task, {})
    row = {
        "sample_id": f"{task}-{pictured}", "entity_id": "fictitious/042", "split": "retain", "part": "test",
        "modality": "multimodal" if pictured else "text", "task": task, "image": b"x" if pictured else None,
        "set": "retain",
    }  # fmt: skip
    return Sample.from_row(row | fields | changes)


CHOICES = "A: Lyon\nB: Tartu\nC: Quito\nD: Perth\n"
LETTER = "Just give ONE letter representing the answer directly."
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."

LLAVA = {
    ("choice", True): f"USER: <image>\nWhere does this person live?\n{CHOICES}{LETTER}\nASSISTANT:",
    ("choice", False): f"USER:\nWhere does Mara Velin live?\n{CHOICES}{LETTER}\nASSISTANT:",
    ("cloze", True): f"USER: <image>\nThis person works as a [Blank].\n{BLANK}\nASSISTANT:",
    ("cloze", False): f"USER:\nMara Velin works as a [Blank].\n{BLANK}\nASSISTANT:",
    (
        "generation",
        True,
    ): "USER: <image>\nWhat is this person's job?\nAnswer the question based on your "
    "trained knowledge in one sentence accurately in ENGLISH.\nASSISTANT: ",
    ("generation", False): "USER: What is Mara Velin's job?\nAnswer the question based on your trained "
    "knowledge in one sentence in ENGLISH.\nASSISTANT:",
}


@pytest.mark.parametrize(("task", "pictured"), LLAVA)
def test_mllmu_for_llava(task, pictured):
    assert llava_prompt(asked(task, pictured=pictured)) == LLAVA[task, pictured]


@pytest.mark.parametrize(("task", "pictured"), LLAVA)
def test_the_turn_is_the_same_text_without_the_frame(task, pictured):
    turn = user_turn(asked(task, pictured=pictured), benchmark="mllmu", style="published")
    frame = re.compile(r"USER:(?: <image>\n|\n| )(.*)\nASSISTANT: ?", re.DOTALL)
    assert frame.fullmatch(LLAVA[task, pictured])[1] == turn


SHOTS = {
    ("choice", True): f"USER: <image>\nQuestion: Where does this person live?\n{CHOICES}Correct Answer: B\n",
    ("choice", False): f"USER:\nQuestion: Where does Mara Velin live?\n{CHOICES}Correct Answer: B\n",
    ("cloze", True): f"USER:<image>\nThis person works as a [Blank].\n{BLANK}\n"
    "Correct Answer: bridge inspector\n",
    ("cloze", False): f"USER:\nMara Velin works as a [Blank].\n{BLANK}\nCorrect Answer: bridge inspector\n",
}


@pytest.mark.parametrize(("task", "pictured"), SHOTS)
def test_shots_come_first(task, pictured):
    question, shot = asked(task, pictured=pictured), asked(task, pictured=pictured)
    assert llava_prompt(question, [shot, shot]) == SHOTS[task, pictured] * 2 + LLAVA[task, pictured]


def test_blanks_of_other_lengths_follow_the_code():
    turn = user_turn(asked("cloze", question="A ____ and _____."), benchmark="mllmu", style="published")
    assert turn.startswith("A [Blank][Blank] and [Blank][Blank]_.")


def test_three_options_have_no_fourth_line():
    turn = user_turn(asked("choice", options=CITIES[:3]), benchmark="mllmu", style="published")
    assert "D:" not in turn and turn.count("\n") == 4


def test_clear_choices_are_mmunlearners():
    sample = asked("choice", question="What is the name of the person in the image?", options=CITIES)
    turn = user_turn(sample, benchmark="clear", style="published")
    assert turn == ("What is the name of the person in the image?\nA. Lyon\nB. Tartu\nC. Quito\nD. Perth\n")


def test_clear_asks_for_names_with_a_blank_at_the_end():
    sample = asked("name", question="The name of the person on the image is ", answer="Mara Velin")
    assert (
        user_turn(sample, benchmark="clear", style="published") == "The name of the person on the image is "
    )


def test_bare_is_the_question():
    for task in PICTURED:
        assert user_turn(asked(task), benchmark="mllmu", style="bare") == PICTURED[task]["question"]


def people(count, part="validation", **changes):
    return [
        asked(task, pictured=pictured, entity_id=f"fictitious/{i}", part=part, **changes)
        for i in range(count)
        for task in PICTURED
        for pictured in (True, False)
    ]


def test_shots_are_people_set_aside_and_the_same_every_time():
    samples = [*people(6), *people(9, part="test")[36:], *people(3, set="forget", split="forget")]
    shots = draw_shots(samples, people=2, seed=0)
    assert shots == draw_shots(samples, people=2, seed=0)
    assert {(s.part, s.set) for s in shots} == {("validation", "retain")}
    assert len({s.entity_id for s in shots}) == 2 and len(shots) == 12
    evaluated = {s.entity_id for s in samples if s.part == "test"}
    assert not evaluated & {s.entity_id for s in shots}
    assert draw_shots(samples, people=0, seed=0) == []


def test_too_few_people_set_aside_is_an_error():
    with pytest.raises(DataError) as error:
        draw_shots(people(1), people=2, seed=0)
    assert "only 1" in str(error.value)


def test_shots_match_the_question_and_never_show_its_person():
    shots = people(3)
    fitting = shots_for(asked("cloze", pictured=False, entity_id="fictitious/1"), shots)
    assert [(s.entity_id, s.task, s.modality) for s in fitting] == [
        ("fictitious/0", "cloze", "text"), ("fictitious/2", "cloze", "text"),
    ]  # fmt: skip
    assert shots_for(asked("generation"), shots) == []
