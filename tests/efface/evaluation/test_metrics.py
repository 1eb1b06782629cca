"""Metrics of texts, likelihoods, pairs of models and privacy: golden vectors, references, bounds, order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.evaluation import comparisons, likelihood, privacy, texts
from efface.evaluation.metrics import METRICS, metric_named, summarise, unavailable, with_metrics

# Loss per row of the right answer in other words, of two wrong answers, and of the gold answer.
PARAPHRASE, WRONG, GOLD = [1.0, 2.0, 0.5], [[2.0, 3.0], [1.0, 2.0], [1.5, 0.5]], [0.8, 1.5, 0.4]
nats = st.floats(0, 50)
ranks = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def table(**changes):
    rows = [
        {
            "sample_id": f"s{i}",
            "entity_id": f"fictitious/{i % 2}",
            "set": "forget",
            "modality": "multimodal",
            "task": "generation",
            "generation": generation,
            "gold": "she keeps a pony",
            "correct": None,
            "nll_gold": GOLD[i],
            "nll_paraphrase": PARAPHRASE[i],
            "nll_wrong": WRONG[i],
            "token_ranks": [2, 0, 0],
            "option_logprobs": None,
        }
        | {key: value[i] for key, value in changes.items()}
        for i, generation in enumerate(["she keeps a pony", "a pony", ""])
    ]
    return pd.DataFrame(rows)


def test_truth_ratio_golden():
    found = [likelihood.truth_ratio(p, w) for p, w in zip(PARAPHRASE, WRONG, strict=True)]
    assert found == pytest.approx([4.4817, 0.6065, 1.6487], abs=5e-5)
    for forget, value in ((True, 0.478730), (False, 0.390113)):
        scores = [
            likelihood.truth_ratio_score(p, w, forget=forget) for p, w in zip(PARAPHRASE, WRONG, strict=True)
        ]
        assert np.mean(scores) == pytest.approx(value, abs=5e-7)


def test_probability_golden():
    assert np.mean([likelihood.probability(value) for value in GOLD]) == pytest.approx(0.447593, abs=5e-7)
    among = [likelihood.probability_among(g, w) for g, w in zip(GOLD, WRONG, strict=True)]
    assert np.mean(among) == pytest.approx(0.487433, abs=5e-7)


def test_comparisons_golden():
    assert comparisons.js_distance([1, 2, 3], [2, 2, 2]) == pytest.approx(0.150160, abs=5e-7)
    quality = comparisons.forget_quality([1, 2, 3], [2, 2, 2])
    assert (quality.statistic, quality.p_value, quality.log10, quality.n) == pytest.approx(
        (1 / 3, 1.0, 0.0, 3)
    )
    assert comparisons.harmonic_mean([0.5, 0.8, 0.4, 0.9]) == pytest.approx(0.582996, abs=5e-7)


def test_the_table_gives_the_golden_means():
    found = summarise(with_metrics(table()))["forget"]["multimodal"]
    assert found["truth_ratio"]["value"] == pytest.approx(0.478730, abs=5e-7)
    assert found["probability"]["value"] == pytest.approx(0.447593, abs=5e-7)
    assert found["probability_among"]["value"] == pytest.approx(0.487433, abs=5e-7)
    assert found["exact_memorisation"] == {"value": pytest.approx(2 / 3), "n": 3}
    assert found["fluency"]["value"] == pytest.approx(2 / 3)
    assert "choice_accuracy" not in found and "exact_match" not in found
    kept = summarise(with_metrics(table(set=["retain"] * 3)))["retain"]["multimodal"]
    assert kept["truth_ratio"]["value"] == pytest.approx(0.390113, abs=5e-7)


def test_without_paraphrases_a_metric_is_not_available_rather_than_zero():
    bare = table().assign(nll_paraphrase=None, nll_wrong=None)
    assert "truth_ratio" not in summarise(with_metrics(bare))["forget"]["multimodal"]
    reasons = unavailable(bare)
    assert reasons["truth_ratio"] == "not available: the samples have no nll_paraphrase, no nll_wrong"
    assert set(reasons) == {"truth_ratio", "probability_among", "choice_accuracy"}
    assert "truth_ratio" in unavailable(table().drop(columns="nll_wrong"))


def test_a_log_probability_that_is_not_a_number_is_an_error():
    with pytest.raises(
        ValueError, match=r"nll_gold of 1 of 3 rows \(such as sample s1\) is not a finite number"
    ):
        with_metrics(table(nll_gold=[0.1, math.nan, 0.2]))
    with pytest.raises(ValueError, match="token_logprobs of 3 of 3 rows"):
        with_metrics(table().assign(token_logprobs=[[0.0, math.nan]] * 3))
    for call in (likelihood.probability, lambda x: likelihood.truth_ratio(x, [1.0])):
        with pytest.raises(ValueError, match="expected a finite number"):
            call(math.nan)


def test_unknown_metric():
    with pytest.raises(ValueError, match="unknown metric 'bleurt'; known are exact_match"):
        metric_named("bleurt")


@pytest.mark.parametrize(
    ("ranks", "memorised", "strength"),
    [
        ([0, 0, 0, 0], 1.0, 1.0),
        ([1, 0, 0, 0], 0.75, 0.75),
        ([0, 0, 5, 0], 0.75, 0.25),
        ([0, 0, 0, 1], 0.75, 0.0),  # not 1/4: nothing follows by itself
        ([3], 0.0, 0.0),
    ],
)
def test_memorisation_golden(ranks, memorised, strength):
    assert likelihood.exact_memorisation(ranks) == memorised
    assert likelihood.extraction_strength(ranks) == strength


@given(ranks)
def test_extraction_strength_is_the_definition(values):
    """Slow reference: try every prefix."""
    n = len(values)
    k = next((k for k in range(n) if all(rank == 0 for rank in values[k:])), n)
    assert likelihood.extraction_strength(values) == pytest.approx(1 - k / n)
    assert 0 <= likelihood.extraction_strength(values) <= likelihood.exact_memorisation(values) <= 1


@given(nats, st.lists(nats, min_size=1, max_size=5))
def test_likelihood_metrics_stay_in_range_whatever_the_order_of_wrong_answers(nll, wrong):
    for function in (
        likelihood.probability_among,
        lambda a, b: likelihood.truth_ratio_score(a, b, forget=True),
        lambda a, b: likelihood.truth_ratio_score(a, b, forget=False),
    ):
        assert 0 <= function(nll, wrong) <= 1
        assert function(nll, wrong) == function(nll, wrong[::-1])
    assert likelihood.truth_ratio(nll, wrong) > 0
    assert 0 < likelihood.probability(nll) <= 1


def test_rouge_recall_and_bleu_golden():
    found = texts.rouge("she keeps a pony", "she keeps pony")
    assert found["rouge_l"].recall == 1.0 and found["rouge_l"].precision == 0.75
    assert found["rouge_1"].f_measure == pytest.approx(6 / 7)
    assert found["rouge_2"].recall == 0.5  # "she keeps" of "she keeps", "keeps pony"
    assert texts.bleu("she keeps a pony", "she keeps a pony") == pytest.approx(1.0)
    # Three of three words, one of two pairs, no triple of one (smoothed to 1/2), brevity exp(1 - 4/3).
    expected = math.exp(1 - 4 / 3) * (1 * 0.5 * 0.5) ** (1 / 3)
    assert texts.bleu("she keeps pony", "she keeps a pony") == pytest.approx(expected)
    assert texts.bleu("", "she keeps a pony") == 0.0


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["generation", "choice", "cloze"]))
def test_row_metrics_stay_in_range(generation, gold, task):
    row = table().iloc[0].to_dict() | {"generation": generation, "gold": gold, "task": task, "correct": True}
    for metric in METRICS.values():
        value = metric.value_of(row)
        assert value is None or metric.low <= value <= metric.high, metric.name


def test_metrics_do_not_depend_on_order_or_batches():
    whole = table(set=["forget", "retain", "forget"])
    halves = pd.concat([with_metrics(whole.iloc[2:]), with_metrics(whole.iloc[:2])])
    assert summarise(halves) == summarise(with_metrics(whole))


@pytest.mark.parametrize(
    ("generation", "task", "fluent"),
    [
        ("she keeps a pony", "generation", True),
        ("pony", "generation", False),
        ("pony", "choice", True),
        ("", "choice", False),
        (" .", "cloze", False),
        ("pony\nHuman: what", "cloze", False),
        ("a pony pony pony", "generation", True),
        ("a pony pony pony pony", "generation", False),
        ("the pet the pet the pet the pet", "generation", False),
        ("the pet the pet the pet", "generation", True),
        ("very very nice and very very fine", "generation", True),
    ],
)
def test_fluency(generation, task, fluent):
    assert texts.is_fluent(generation, task) is fluent


@pytest.mark.parametrize(
    ("generation", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I don’t know.", True),
        ("Sorry", True),
        ("Sorrylund is her home", False),
        ("She does not know", False),
        ("", False),
    ],
)
def test_refusal(generation, refusal):
    assert texts.is_refusal(generation) is refusal


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.lists(st.integers(-3, 3), min_size=1, max_size=9)
)
def test_auc_counts_pairs(members, others):
    """Slow reference: every pair, ties half; and turning the groups round turns the area round."""
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert privacy.auc(members, others) == pytest.approx(np.mean(pairs))
    assert privacy.auc(others, members) == pytest.approx(1 - privacy.auc(members, others))
    assert privacy.auc(members[::-1], others) == pytest.approx(privacy.auc(members, others))


def test_membership_signals_golden():
    assert privacy.loss_signal(1.5) == -1.5
    assert privacy.zlib_signal(2.0, 3, "a") == pytest.approx(-6 / 9)  # one letter takes nine bytes
    logprobs = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert privacy.min_k_signal(logprobs) == -4.5  # the lowest two of five
    assert privacy.min_k_signal([-1.0]) == -1.0
    assert privacy.min_k_pp_signal([0.5, -2.0], lowest=0.5) == -2.0
    with pytest.raises(ValueError, match="lowest is 0"):
        privacy.min_k_signal(logprobs, lowest=0)
    with pytest.raises(ValueError, match="none"):
        privacy.min_k_signal([])


def test_privacy_leak_has_two_sides():
    assert privacy.privacy_leak(0.5, 0.5) == 0
    assert privacy.privacy_leak(0.9, 0.5) == pytest.approx(-0.8)
    assert privacy.privacy_leak(0.1, 0.5) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="below 1, got 0.5 and 1.0"):
        privacy.privacy_leak(0.5, 1.0)
    with pytest.raises(ValueError, match="holdout"):
        privacy.auc([1.0], [])


positive = st.lists(st.floats(0.01, 100), min_size=2, max_size=20)


@given(positive, st.randoms())
def test_forget_quality_and_binned_distance_know_no_order(values, random):
    shuffled = random.sample(values, len(values))
    quality = comparisons.forget_quality(shuffled, values)
    assert quality.p_value == pytest.approx(1.0) and quality.statistic == 0
    assert comparisons.js_distance(shuffled, values, bins=5) == pytest.approx(0, abs=1e-7)
    other = [value * 3 for value in values]
    assert 0 <= comparisons.forget_quality(values, other).p_value <= 1
    assert 0 <= comparisons.js_distance(values, other, bins=5) <= math.sqrt(math.log(2)) + 1e-9
    assert 0 <= comparisons.js_distance(values, other) <= math.sqrt(math.log(2)) + 1e-9


def test_forget_quality_of_models_far_apart_stays_a_number():
    quality = comparisons.forget_quality([0.001] * 2000, [1000.0] * 2000)
    assert quality.p_value < 1e-100 and math.isfinite(quality.log10) and quality.log10 < -100


@pytest.mark.parametrize("function", [comparisons.forget_quality, comparisons.js_distance])
def test_comparisons_refuse_other_rows_and_bad_ratios(function):
    with pytest.raises(ValueError, match="got 2 and 3; score both on the same samples"):
        function([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="not a positive number"):
        function([1, math.nan], [1, 2])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_harmonic_mean_lies_between_and_a_zero_wins(values):
    mean = comparisons.harmonic_mean(values)
    assert min(values) - 1e-9 <= mean <= np.mean(values) + 1e-9
    assert comparisons.harmonic_mean([*values, 0.0]) == 0
    with pytest.raises(ValueError, match="harmonic mean"):
        comparisons.harmonic_mean([*values, -0.1])
    with pytest.raises(ValueError, match="harmonic mean"):
        comparisons.harmonic_mean([])
