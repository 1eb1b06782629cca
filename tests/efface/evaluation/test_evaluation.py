"""Facts in generations, the likeliest option, and the summary of a table: golden values, bounds, order."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.evaluation.metrics import METRICS, choice, exact_match, normalise, rouge_l, summarise


@pytest.mark.parametrize(
    ("generation", "gold", "value"),
    [
        ("bridge inspector", "bridge inspector", 1.0),
        ("Bridge  Inspector.", "bridge inspector", 1.0),
        ("bridge", "bridge inspector", 0.0),
        ("a bridge inspector", "bridge inspector", 0.0),
        ("", "pony", 0.0),
        ("heart", "art", 0.0),
    ],
)
def test_exact_match(generation, gold, value):
    assert exact_match(generation, gold) == value


def test_rouge_l_golden_values():
    # Longest common subsequence 3 of 4 and 3 words: precision 3/4, recall 3/3.
    assert rouge_l("she keeps a pony", "she keeps pony") == pytest.approx(6 / 7)
    assert rouge_l("inspectors inspect", "inspector inspecting") == 1.0  # stemmed
    assert rouge_l("", "she keeps a pony") == 0.0
    assert rouge_l("nothing alike", "she keeps a pony") == 0.0


def test_choice_takes_the_likeliest_and_refuses_nan():
    assert choice([-2.0, -0.5, -0.5, -3.0]) == 1
    with pytest.raises(ValueError) as error:
        choice([math.nan, -1.0])
    assert "nan" in str(error.value)
    with pytest.raises(ValueError) as error:
        choice([])
    assert "[]" in str(error.value)


@settings(deadline=None)  # the first example imports the ROUGE package
@given(st.text(max_size=40), st.text(max_size=40))
def test_metrics_stay_in_their_range(generation, gold):
    for task in ("choice", "cloze", "qa", "name", "generation"):
        row = {"generation": generation, "gold": gold, "task": task, "correct": True}
        for metric in METRICS.values():
            value = metric.value_of(row)
            assert value is None or metric.low <= value <= metric.high


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


def test_summary_is_the_mean_of_the_rows_that_count_in_any_order():
    table = pd.DataFrame(
        {
            "set": ["forget"] * 4,
            "modality": ["multimodal", "multimodal", "multimodal", "text"],
            "exact_match": pd.array([1.0, 0.0, None, 1.0], dtype="Float64"),
            "choice_accuracy": pd.array([None, 1.0, None, None], dtype="Float64"),
            "rouge_l": pd.array([None, None, 0.25, None], dtype="Float64"),
        }
    )
    expected = {
        "forget": {
            "multimodal": {
                "exact_match": {"value": 0.5, "n": 2},
                "choice_accuracy": {"value": 1.0, "n": 1},
                "rouge_l": {"value": 0.25, "n": 1},
            },
            "text": {"exact_match": {"value": 1.0, "n": 1}},
        }
    }
    assert summarise(table) == expected == summarise(table.iloc[::-1])
