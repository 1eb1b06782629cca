"""Metrics of texts, likelihoods, pairs of models and privacy: golden vectors, references, bounds, order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.evaluation import comparisons, likelihood, privacy, texts
from efface.evaluation.metrics import METRICS, summarise, unavailable, with_metrics

# Loss per row of the right answer in other words, of two wrong answers, and of the gold answer.
PARAPHRASE, WRONG, GOLD = [1.0, 2.0, 0.5], [[2.0, 3.0], [1.0, 2.0], [1.5, 0.5]], [0.8, 1.5, 0.4]
nats = st.floats(0, 50)
ranks = st.lists(st.integers(0, 3), min_size=1, max_size=12)
"""Of answer tokens; the end token is added."""


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
            "token_ranks": [2, 0, 0, 0],
            "token_logprobs": [math.log(0.5), math.log(0.125), -GOLD[i], 0.0],
            "option_logprobs": None,
        }
        | {key: value[i] for key, value in changes.items()}
        for i, generation in enumerate(["she keeps a pony", "a pony", ""])
    ]
    return pd.DataFrame(rows)


def test_truth_ratio_golden():
    ratios = [likelihood.truth_ratio(p, w) for p, w in zip(PARAPHRASE, WRONG, strict=True)]
    assert ratios == pytest.approx([4.4817, 0.6065, 1.6487], abs=5e-5)
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


def test_the_table_gives_the_golden_means():
    means = summarise(with_metrics(table()))["forget"]["multimodal"]
    assert means["truth_ratio"]["value"] == pytest.approx(0.478730, abs=5e-7)
    assert means["probability"]["value"] == pytest.approx(0.447593, abs=5e-7)
    assert means["probability_among"]["value"] == pytest.approx(0.487433, abs=5e-7)
    assert means["exact_memorisation"] == {"value": pytest.approx(2 / 3), "n": 3}
    assert means["fluency"]["value"] == pytest.approx(2 / 3)
    assert "choice_accuracy" not in means and "exact_match" not in means
    retained = summarise(with_metrics(table(set=["retain"] * 3)))["retain"]["multimodal"]
    assert retained["truth_ratio"]["value"] == pytest.approx(0.390113, abs=5e-7)


def test_without_paraphrases_a_metric_is_not_available_rather_than_zero():
    bare = table().assign(nll_paraphrase=None, nll_wrong=None)
    assert "truth_ratio" not in summarise(with_metrics(bare))["forget"]["multimodal"]
    reasons = unavailable(bare)
    assert reasons["truth_ratio"] == "not available: the samples have no nll_paraphrase, no nll_wrong"
    assert set(reasons) == {"truth_ratio", "probability_among", "choice_accuracy", "base_likelihood"}
    assert "truth_ratio" in unavailable(table().drop(columns="nll_wrong"))


def test_the_base_models_likelihood_is_that_per_token_and_has_no_value_without_an_answer():
    scored = with_metrics(table().assign(base_logprob=[math.log(0.25), None, 0.0]), ["base_likelihood"])
    values = scored["base_likelihood"]
    assert values[0] == pytest.approx(0.25) and values[2] == 1.0 and pd.isna(values[1])


def test_a_log_probability_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError) as error:
        with_metrics(table(nll_gold=[0.1, math.nan, 0.2]))

    assert "nll_gold of 1 of 3" in str(error.value) and "s1" in str(error.value)
    with pytest.raises(ValueError) as error:
        with_metrics(table().assign(token_logprobs=[[0.0, math.nan]] * 3))

    assert "token_logprobs of 3 of 3" in str(error.value)


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
    for end in (0, 7):  # the end token counts in neither
        assert likelihood.exact_memorisation([*ranks, end]) == memorised
        assert likelihood.extraction_strength([*ranks, end]) == strength


def test_knowledge_leaves_the_end_token_out():
    assert likelihood.knowledge([math.log(0.5), math.log(0.125), math.log(0.9)]) == pytest.approx(0.25)


@given(ranks)
def test_extraction_strength_is_the_definition(values):
    """Slow reference: try every prefix."""
    n = len(values)
    k = next((k for k in range(n) if all(rank == 0 for rank in values[k:])), n)
    strength, memorised = (
        f([*values, 0]) for f in (likelihood.extraction_strength, likelihood.exact_memorisation)
    )
    assert strength == pytest.approx(1 - k / n)
    assert 0 <= strength <= memorised <= 1


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
    overlaps = texts.rouge("she keeps a pony", "she keeps pony")
    assert overlaps["rougeL"].recall == 1.0 and overlaps["rougeL"].precision == 0.75
    assert overlaps["rouge1"].fmeasure == pytest.approx(6 / 7)
    assert overlaps["rouge2"].recall == 0.5  # "she keeps" of "she keeps", "keeps pony"
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
def test_auc_counts_pairs(members, non_members):
    """Slow reference: every pair, ties half; and turning the groups round turns the area round."""
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in non_members]
    assert privacy.auc(members, non_members) == pytest.approx(np.mean(pairs))
    assert privacy.auc(non_members, members) == pytest.approx(1 - privacy.auc(members, non_members))
    assert privacy.auc(members[::-1], non_members) == pytest.approx(privacy.auc(members, non_members))


def test_membership_signals_golden():
    assert privacy.loss_signal(1.5) == -1.5
    assert privacy.zlib_signal(2.0, "a") == pytest.approx(-2 / 9)  # one letter takes nine bytes
    logprobs = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert privacy.min_k_signal(logprobs) == -4.5  # the lowest two of five
    assert privacy.min_k_signal([-1.0]) == -1.0
    assert privacy.min_k_signal([0.5, -2.0]) == -2.0


def test_true_positives_at_a_rate_of_false_ones():
    members, non_members = [5.0, 3.0, 1.0, 0.0], list(np.arange(200) / 100)  # 0 to 1.99
    assert privacy.true_positive_rate(members, non_members) == 0.5  # 2 of 200 may be above: 1.97
    assert privacy.true_positive_rate([1.98, 1.975, 1.97], non_members) == pytest.approx(2 / 3)
    assert privacy.true_positive_rate([2.0, 3.0], [3.0]) == 0  # too few: none may be above


def test_the_relative_test_knows_which_model_is_nearer():
    people = [f"p{i}" for i in range(8)]
    rng = np.random.default_rng(0)
    vanilla = {person: rng.normal(-0.2, 0.1, 4) for person in people}
    retrained = {person: rng.normal(-3, 0.1, 4) for person in people}
    similar = {person: rng.normal(-2.5, 0.1, 4) for person in people}
    result = comparisons.relative_distance(similar, vanilla, retrained)
    by_hand = [
        np.sqrt(np.mean((similar[p] - vanilla[p]) ** 2)) - np.sqrt(np.mean((similar[p] - retrained[p]) ** 2))
        for p in people
    ]
    assert result.difference == pytest.approx(np.mean(by_hand)) and result.people == 8
    assert result.p_value == 2 / 2**8  # all eight on one side: the smallest there is
    swapped = comparisons.relative_distance(similar, retrained, vanilla)
    assert (swapped.difference, swapped.p_value) == (pytest.approx(-result.difference), result.p_value)
    with pytest.raises(ValueError) as error:
        comparisons.relative_distance(similar, vanilla, {"p0": [1.0]})
    assert "(1, 1)" in str(error.value)


def test_the_relative_test_is_level_between_two_models_alike():
    """20 people, so signs are drawn: about one in twenty runs falls below .05."""
    rng = np.random.default_rng(1)
    people = [f"p{i}" for i in range(20)]
    hits = []
    for _ in range(60):
        tables = [{person: rng.normal(0, 1, 3) for person in people} for _ in range(3)]
        hits.append(comparisons.relative_distance(*tables, permutations=200).p_value < 0.05)
    assert np.mean(hits) <= 0.15


def test_privacy_leak_has_two_sides():
    assert privacy.privacy_leak(0.5, 0.5) == 0
    assert privacy.privacy_leak(0.9, 0.5) == pytest.approx(-0.8)
    assert privacy.privacy_leak(0.1, 0.5) == pytest.approx(0.8)
    with pytest.raises(ValueError) as error:
        privacy.auc([1.0], [])

    assert "0 samples" in str(error.value)


positive = st.lists(st.floats(0.01, 100), min_size=2, max_size=20)


@given(positive, st.randoms())
def test_forget_quality_and_binned_distance_know_no_order(values, random):
    shuffled = random.sample(values, len(values))
    quality = comparisons.forget_quality(shuffled, values)
    assert quality.p_value == pytest.approx(1.0) and quality.statistic == 0
    assert comparisons.js_distance(shuffled, values, bins=5) == pytest.approx(0, abs=1e-7)
    tripled = [value * 3 for value in values]
    assert 0 <= comparisons.forget_quality(values, tripled).p_value <= 1
    assert 0 <= comparisons.js_distance(values, tripled, bins=5) <= math.sqrt(math.log(2)) + 1e-9
    assert 0 <= comparisons.js_distance(values, tripled) <= math.sqrt(math.log(2)) + 1e-9


def test_forget_quality_of_models_far_apart_stays_a_number():
    quality = comparisons.forget_quality([0.001] * 2000, [1000.0] * 2000)
    assert quality.p_value < 1e-100 and math.isfinite(quality.log10) and quality.log10 < -100


@pytest.mark.parametrize("function", [comparisons.forget_quality, comparisons.js_distance])
def test_comparisons_refuse_other_rows_and_bad_ratios(function):
    with pytest.raises(ValueError) as error:
        function([1, 2], [1, 2, 3])

    assert "2 and 3" in str(error.value)
    with pytest.raises(ValueError) as error:
        function([1, math.nan], [1, 2])

    assert "positive" in str(error.value)
