"""Numbers of attack tables: means and gaps by hand, the mean gap of each attack, tables that do not fit."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.attacks.outcomes import attack_gaps, attack_outcomes, budget_curves, worst_attack, worst_of
from efface.errors import ArtifactError
from efface.evaluation.intervals import PersonSums


def table(right, *, kind="forget"):
    """Attack table from ``{(attack, variant, budget): {person: [right or wrong, ...]}}``."""
    rows = []
    for (attack, variant, budget), people in right.items():
        for person, answers in people.items():
            for i, value in enumerate(answers):
                about = {"sample_id": f"{person}-{i}", "entity_id": person, "question": "?", "gold": "a"}
                about |= {"set": kind, "part": "test", "modality": "multimodal", "task": "qa"}
                labels = {"attack": attack, "variant": variant, "budget": budget}
                rows.append(about | labels | {"exact_match": float(value), "rouge_l": None})
    types = {"budget": "Int64", "exact_match": "Float64", "rouge_l": "Float64"}
    return pd.DataFrame(rows).astype(types)


PLAIN = ("none", "none", None)
EIGHT, FOUR = ("quantize", "8 bits", None), ("quantize", "4 bits", None)
START, LATER, LAST = (("relearn", f"{n} steps", n) for n in (0, 10, 30))
MODEL = {
    PLAIN: {"a": [1, 0], "b": [0, 0]},
    EIGHT: {"a": [1, 0], "b": [0, 0]},
    FOUR: {"a": [1, 1], "b": [0, 0]},
    START: {"b": [0, 0]},
    LATER: {"b": [1, 1]},
    LAST: {"b": [1, 1]},
}
RETRAINED = {
    PLAIN: {"a": [0, 0], "b": [0, 0]},
    EIGHT: {"a": [0, 0], "b": [0, 0]},
    FOUR: {"a": [1, 1], "b": [1, 0]},
    START: {"b": [0, 0]},
    LATER: {"b": [0, 1]},
    LAST: {"b": [1, 1]},
}


def test_every_variant_has_its_mean_its_people_and_its_gap():
    outcomes = attack_outcomes(table(MODEL), table(RETRAINED))
    assert [(o.attack, o.variant, o.budget, o.people) for o in outcomes] == [
        ("none", "none", None, 2),
        ("quantize", "8 bits", None, 2),
        ("quantize", "4 bits", None, 2),
        ("relearn", "0 steps", 0, 1),
        ("relearn", "10 steps", 10, 1),
        ("relearn", "30 steps", 30, 1),
    ]
    assert [o.values["exact_match"] for o in outcomes] == [0.25, 0.25, 0.5, 0.0, 1.0, 1.0]
    assert [o.gap() for o in outcomes] == [0.25, 0.25, -0.25, 0.0, 0.5, 0.0]
    assert all("rouge_l" not in o.values and o.gap("rouge_l") is None for o in outcomes)


def test_the_gap_of_an_attack_is_the_mean_over_its_variants():
    gaps = attack_gaps(table(MODEL), table(RETRAINED))
    assert {a: (g.variants, g.gap) for a, g in gaps.items()} == {"quantize": (2, 0.0), "relearn": (2, 0.25)}
    # Two people: differences of a (.5, .0) and b (.0, -.5), means over variants .25 and -.25.
    assert gaps["quantize"].low == pytest.approx(-12.706205 * 0.25)
    assert gaps["relearn"].low is None  # one person held out


def test_the_mean_over_variants_has_no_bias_where_the_largest_has():
    """For two equal models and eight noisy variants, the largest gap is far above 0, but not the mean."""
    rng = np.random.default_rng(0)
    variants = [("image_shift", str(i), None) for i in range(8)]

    def noisy():
        return table({v: {p: rng.integers(0, 2, 4).tolist() for p in "abcde"} for v in variants})

    pairs = [(noisy(), noisy()) for _ in range(12)]
    means = [attack_gaps(model, retrained)["image_shift"].gap for model, retrained in pairs]
    largest = [max(o.gap() for o in attack_outcomes(model, retrained)) for model, retrained in pairs]
    assert abs(np.mean(means)) < 0.05 < 0.15 < np.mean(largest)


def test_the_worst_of_one_variant_is_its_mean_with_student_s_interval():
    one = ({PLAIN: MODEL[PLAIN]}, {PLAIN: RETRAINED[PLAIN]})
    worst = worst_attack(table(one[0]), table(one[1]))
    assert (worst.gap, worst.attack, worst.variants, worst.people) == (0.25, "none", 1, 2)
    assert worst.interval == (-1, 1)  # differences of a and b: .5 and 0, so Student's is .25 +- 3.2
    assert "no attack at all" in worst.sentence
    assert worst_attack(table(MODEL), table({PLAIN: RETRAINED[PLAIN]})).variants == 1
    assert worst_attack(table({START: MODEL[START]}), table({START: RETRAINED[START]})) is None


def test_the_worst_attack_by_hand():
    """Two people, so either half is one person: each chooses, the other counts."""
    worst = worst_attack(table(MODEL), table(RETRAINED))
    assert (worst.variants, worst.people) == (5, 2)
    # On a alone the first of the .5 gaps is worst: none, which b answers by 0. On b it is relearning's 10
    # steps, which never asked a, so none again (0 for both of its rivals but 4 bits), and a has .5.
    assert worst.gap == pytest.approx((0.0 + 0.5) / 2)
    assert worst.attack == "none"


def test_more_people_and_one_variant_have_student_s_interval():
    values = np.array([0.1, 0.4, -0.2, 0.3, 0.0])
    cell = ("reword", "wording 1")
    sums = PersonSums({cell: values * 2}, {cell: np.full(5, 2.0)}, np.array(["people"] * 5))
    half = 2.7764451 * values.std(ddof=1) / 5**0.5
    worst = worst_of(sums, draws=10)
    assert worst.interval == pytest.approx((values.mean() - half, values.mean() + half))
    assert worst.gap == pytest.approx(values.mean(), abs=0.02)  # halves of two and three people
    assert (
        worst_of(PersonSums({cell: np.zeros(3)}, {cell: np.ones(3)}, sums.groups[:3]), draws=5).interval
        is None
    )


def simulated(rng, mean, *, people, shared):
    """Differences of people and variants around true gaps, with a part that a person has in all variants."""
    noise = shared**0.5 * rng.normal(size=(1, people)) + (1 - shared) ** 0.5 * rng.normal(
        size=(len(mean), people)
    )
    values = mean[:, None] + 0.2 * noise
    sums = {("attack", str(v)): row for v, row in enumerate(values)}
    return PersonSums(sums, {key: np.ones(people) for key in sums}, np.array(["people"] * people))


@pytest.mark.parametrize("shared", [0.0, 0.6])
@pytest.mark.parametrize("people", [6, 20])
@pytest.mark.parametrize(
    "mean", [np.zeros(12), np.linspace(0, 0.3, 12), np.eye(12)[3] * 0.3], ids=["alike", "graded", "one"]
)
def test_the_interval_of_the_worst_attack_holds_the_largest_true_gap(mean, people, shared):
    """A plain maximum is .07 to .14 too large where all are alike, and its t interval holds too rarely."""
    rng = np.random.default_rng(0)
    results = [worst_of(simulated(rng, mean, people=people, shared=shared), draws=10) for _ in range(250)]
    truth = mean.max()
    covered = np.mean([r.interval[0] <= truth <= r.interval[1] for r in results])
    assert covered >= 0.95 - 2 * (0.95 * 0.05 / 250) ** 0.5
    bias = np.mean([r.gap for r in results]) - truth
    assert -0.07 < bias < 0.02  # too low where some variants are nearly as bad as the worst


def test_nothing_taught_yet_is_no_attack_and_without_retrained_there_is_no_gap():
    early = {key: value for key, value in MODEL.items() if key in (PLAIN, START)}
    assert attack_gaps(table(early), table(early)) == {}
    partly = {key: value for key, value in RETRAINED.items() if key[0] != "relearn"}
    assert set(attack_gaps(table(MODEL), table(partly))) == {"quantize"}
    assert budget_curves(attack_outcomes(table(MODEL), None), "exact_match") == {
        "relearn": {0: 0.0, 10: 1.0, 30: 1.0}
    }


def test_other_sets_are_left_out():
    assert attack_outcomes(table(MODEL, kind="unseen"), None) == []


def test_other_people_held_out_do_not_compare():
    changed = RETRAINED | {LATER: {"a": [0, 1]}}
    with pytest.raises(ArtifactError) as error:
        attack_outcomes(table(MODEL), table(changed))
    assert "retrained, relearn, 10 steps" in str(error.value)


@settings(max_examples=10, deadline=None)  # every call makes tables
@given(st.permutations(range(len(table(MODEL)))))
def test_the_order_of_rows_changes_no_number(order):
    key = {(o.attack, o.variant): o for o in attack_outcomes(table(MODEL), table(RETRAINED))}
    mixed = {(o.attack, o.variant): o for o in attack_outcomes(table(MODEL).iloc[order], table(RETRAINED))}
    assert mixed == key
