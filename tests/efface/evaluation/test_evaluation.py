"""Scoring and metrics: batches equal singles, options and gold by the definition, golden values, bounds."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.data.encoding import encode
from efface.evaluation import score
from efface.evaluation.metrics import METRICS, choice, exact_match, normalise, rouge_l, summarise
from tests.efface.conftest import COLOURS, sample
from tests.efface.unlearning.test_methods import slow_log_prob


def questions():
    rows = []
    for i in range(6):
        for pictured in (True, False):
            kind = ("choice", "cloze", "generation")[i % 3]
            options = COLOURS if kind == "choice" else None
            answer = COLOURS[i % 4] if kind != "generation" else None
            rows.append(
                sample(
                    i, pictured=pictured, answer=answer, part="test", task=kind, options=options, set="retain"
                )
            )
    return rows


def test_batches_give_what_single_samples_give(model, processor):
    rows = questions()
    together = score(model, processor, rows, batch_size=5, max_new_tokens=6)
    alone = pd.concat(
        [score(model, processor, [row], batch_size=1, max_new_tokens=6) for row in rows], ignore_index=True
    )
    assert together["generation"].tolist() == alone["generation"].tolist()
    assert together["nll_gold"].tolist() == pytest.approx(alone["nll_gold"].tolist(), abs=1e-5)
    for a, b in zip(together["option_logprobs"], alone["option_logprobs"], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert list(a) == pytest.approx(list(b), abs=1e-5)


def test_rows_follow_the_definitions(model, processor):
    rows = questions()
    table = score(model, processor, rows, batch_size=4, max_new_tokens=6)
    assert table["sample_id"].tolist() == [row.sample_id for row in rows]
    for row, found in zip(rows, table.to_dict("records"), strict=True):
        (encoded,) = encode(processor, [row])
        assert found["nll_gold"] * found["n_tokens"] == pytest.approx(
            -slow_log_prob(model, encoded), abs=1e-3
        )
        if row.task == "choice":
            per_token = []
            for option in row.options:
                (encoded,) = encode(
                    processor, [sample(int(row.pair_id), pictured=row.image_bytes is not None, answer=option)]
                )
                per_token.append(slow_log_prob(model, encoded) / int((encoded["labels"] != -100).sum()))
            assert list(found["option_logprobs"]) == pytest.approx(per_token, abs=1e-4)
            assert found["correct"] == (row.options[per_token.index(max(per_token))] == row.answer)
        else:
            assert found["options"] is None and found["correct"] is None


def test_nothing_to_score_is_an_error(model, processor):
    with pytest.raises(ValueError, match="no samples to score"):
        score(model, processor, [], batch_size=4)


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
    with pytest.raises(ValueError, match="expected log-probabilities"):
        choice([math.nan, -1.0])
    with pytest.raises(ValueError, match="expected log-probabilities"):
        choice([])


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
