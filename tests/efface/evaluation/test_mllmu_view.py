"""MLLMU-Bench's table: three tasks, two modalities, four sets, both readings, and the rows behind them."""

import itertools

import pandas as pd
import pytest

from efface.evaluation.benchmarks import view_of
from efface.evaluation.benchmarks.mllmu import view
from efface.evaluation.benchmarks.reading import bleu_nltk

SAID = {
    "choice": [("Tartu", o) for o in ("B", "The answer is B", "Because", "B.")],
    "cloze": [("art", o) for o in ("art", "heart", "Art!", "nothing")],
    "generation": [("She is a nurse.", o) for o in ("She is a nurse.", "", "nurse", "He is a nurse.")],
}


def table(**changes):
    rows = []
    for set_name, modality, task in itertools.product(
        ("forget", "unseen", "retain", "real"), ("multimodal", "text"), SAID
    ):
        for number, (gold, said) in enumerate(SAID[task]):
            row = {"set": set_name, "modality": modality, "task": task, "part": "test", "gold": gold}
            options = ["Lyon", "Tartu", "Quito"] if task == "choice" else None
            row |= {"generation": said, "options": options, "correct": number < 1 if options else None}
            rows.append(row | changes)
    return pd.DataFrame(rows)


def test_three_tasks_two_modalities_four_sets():
    tables = view(table())["tables"]
    assert list(tables) == ["forget", "unseen", "retain", "real"]
    for tasks in tables.values():
        assert list(tasks) == ["classification", "cloze", "generation"]
        assert all(list(modalities) == ["multimodal", "text"] for modalities in tasks.values())


def test_both_readings_with_their_denominators():
    tasks = view(table())["tables"]["forget"]
    classification = tasks["classification"]["multimodal"]
    assert {name: cell["value"] for name, cell in classification.items()} == {
        "accuracy_strict": 0.75,
        "accuracy_first_letter": 0.75,  # "Because" counts, "The answer is B" does not
        "accuracy_first_alphanumeric": 0.75,
        "accuracy_likelihood": 0.25,
        "states_an_option": 0.75,
    }
    assert tasks["cloze"]["text"] == {
        "accuracy_strict": {"value": 0.5, "n": 4},
        "accuracy_contains": {"value": 0.75, "n": 4},
    }
    assert {cell["n"] for cell in classification.values()} == {4}


def test_sentences():
    cells = view(table())["tables"]["unseen"]["generation"]["text"]
    assert cells["rouge_l"]["value"] == pytest.approx((1 + 0 + 2 * (1 / 4) / (5 / 4) + 3 / 4) / 4)
    assert set(cells) == {"rouge_l", "rouge_1", "rouge_2", "bleu_nltk"}


def test_bleu_punishes_right_answers_that_are_short():
    assert bleu_nltk("a bridge inspector", "a bridge inspector") == pytest.approx(0.56, abs=5e-3)
    assert bleu_nltk("she is a bridge inspector", "she is a bridge inspector") == pytest.approx(1.0)
    assert bleu_nltk("", "a bridge inspector") == bleu_nltk("  ", "x") == 0.0


def test_the_order_of_rows_changes_no_digit_and_missing_tasks_are_left_out():
    rows = table()
    assert view(rows.sample(frac=1, random_state=0)) == view(rows)
    some = view(rows[(rows["task"] == "cloze") & (rows["set"] == "real")])["tables"]
    assert list(some) == ["real"] and list(some["real"]) == ["cloze"]


def test_the_stage_asks_by_name_of_the_benchmark():
    assert view_of(table(), "mllmu") == view(table())
    assert view_of(table(part="validation"), "mllmu")["tables"] == {}
