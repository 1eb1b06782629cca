"""About ten numbers per model for the table of all models."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from efface.evaluation.metrics import fact_rows
from efface.evaluation.summary import METRICS_FILE, model_metrics


def row(
    name: str, modality: str, task: str, logprobs: list[float], generation: str, part: str = "test"
) -> dict:
    return {
        "set": name,
        "modality": modality,
        "task": task,
        "part": part,
        "sample_id": f"{name}/{modality}/{task}",
        "gold": "goldfish",
        "generation": generation,
        "nll_gold": 1.0,
        "token_logprobs": logprobs,
    }


def table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row("forget", "multimodal", "cloze", [math.log(0.5), math.log(0.125), 0.0], "goldfish"),
            row("forget", "multimodal", "generation", [math.log(0.9), 0.0], "A goldfish."),
            row("forget", "multimodal", "cloze", [math.log(0.9), 0.0], "cat", part="validation"),
            row("forget", "text", "generation", [math.log(0.3), 0.0], "A goldfish."),
            row("real", "multimodal", "choice", [math.log(0.2), 0.0], "cat"),
            row("real", "text", "choice", [math.log(0.6), 0.0], ""),
        ]
    )


def test_one_flat_number_per_key_and_none_without_rows() -> None:
    assert model_metrics(table()) == {
        "forget": pytest.approx(0.25),  # the end token, the sentence and the validation row do not count
        "forget_text": pytest.approx(0.3),  # nothing but a sentence there
        "real": pytest.approx(0.4),
        "forget_exact": 1.0,
        "fluency": pytest.approx(4 / 5),
    }


def test_held_out_sentences_and_the_base_models_likelihood_have_numbers_of_their_own() -> None:
    rows = [
        row("utility", "text", "qa", [math.log(0.9), 0.0], "Paris"),
        row("utility", "text", "generation", [math.log(0.1), math.log(0.4), 0.0], "river"),
    ]
    scores = pd.DataFrame(rows).assign(base_logprob=pd.Series([-1.25, None], dtype="Float64"))
    assert model_metrics(scores) == {
        "utility": pytest.approx(0.9),
        "language": pytest.approx(0.2),
        "base_logprob": -1.25,  # an answer without a word has none
        "fluency": pytest.approx(1 / 2),
    }


def test_every_key_is_a_mean_of_one_metric() -> None:
    assert {metric for metric, _, _ in METRICS_FILE.values()} == {"knowledge", "exact_match"}


def test_sentences_stand_in_where_no_fact_is_asked() -> None:
    assert fact_rows(table())["task"].tolist() == ["cloze", "cloze", "generation", "choice", "choice"]
