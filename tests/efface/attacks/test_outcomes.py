"""Numbers of attack tables: means and gaps by hand, the worst of each attack, tables that do not fit."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.attacks.outcomes import attack_outcomes, largest_gaps
from efface.errors import ArtifactError


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
OURS = {
    PLAIN: {"a": [1, 0], "b": [0, 0]},
    EIGHT: {"a": [1, 0], "b": [0, 0]},
    FOUR: {"a": [1, 1], "b": [0, 0]},
    START: {"b": [0, 0]},
    LATER: {"b": [1, 1]},
    LAST: {"b": [1, 1]},
}
THEIRS = {
    PLAIN: {"a": [0, 0], "b": [0, 0]},
    EIGHT: {"a": [0, 0], "b": [0, 0]},
    FOUR: {"a": [1, 1], "b": [1, 0]},
    START: {"b": [0, 0]},
    LATER: {"b": [0, 1]},
    LAST: {"b": [1, 1]},
}


def test_every_variant_has_its_mean_its_people_and_its_gap():
    found = attack_outcomes(table(OURS), table(THEIRS))
    assert [(o.attack, o.variant, o.budget, o.people) for o in found] == [
        ("none", "none", None, 2),
        ("quantize", "8 bits", None, 2),
        ("quantize", "4 bits", None, 2),
        ("relearn", "0 steps", 0, 1),
        ("relearn", "10 steps", 10, 1),
        ("relearn", "30 steps", 30, 1),
    ]
    assert [o.values["exact_match"] for o in found] == [0.25, 0.25, 0.5, 0.0, 1.0, 1.0]
    assert [o.gap() for o in found] == [0.25, 0.25, -0.25, 0.0, 0.5, 0.0]
    assert all("rouge_l" not in o.values and o.gap("rouge_l") is None for o in found)


def test_the_worst_of_an_attack_is_the_largest_gap_not_the_largest_value():
    worst = largest_gaps(attack_outcomes(table(OURS), table(THEIRS)))
    assert {attack: o.variant for attack, o in worst.items()} == {"quantize": "8 bits", "relearn": "10 steps"}
    assert worst["relearn"].gap() == 0.5 and worst["relearn"].retrained == {"exact_match": 0.5}


def test_nothing_taught_yet_is_no_attack():
    forgotten = OURS | {START: {"b": [1, 1]}, LATER: {"b": [1, 0]}, LAST: {"b": [0, 0]}}
    found = attack_outcomes(table(forgotten), None)
    assert largest_gaps(found)["relearn"].variant == "10 steps"
    assert "relearn" not in largest_gaps(o for o in found if not o.budget)


def test_without_retrained_the_worst_is_what_the_model_answers_most_and_no_gap_is_invented():
    worst = largest_gaps(attack_outcomes(table(OURS), None))
    assert worst["quantize"].variant == "4 bits" and worst["quantize"].gap() is None
    partly = {key: value for key, value in THEIRS.items() if key[0] != "relearn"}
    found = largest_gaps(attack_outcomes(table(OURS), table(partly)))
    assert found["relearn"].gap() is None and found["quantize"].gap() == 0.25


def test_other_sets_are_left_out_and_can_be_asked_for():
    assert attack_outcomes(table(OURS, kind="unseen"), None) == []
    both = pd.concat([table(OURS), table({PLAIN: {"c": [1, 1]}}, kind="unseen")])
    assert attack_outcomes(both, None, sets=("forget", "unseen"))[0].values["exact_match"] == 0.5


def test_other_people_held_out_do_not_compare():
    other = THEIRS | {LATER: {"a": [0, 1]}}
    with pytest.raises(ArtifactError, match="against retrained, relearn, 10 steps"):
        attack_outcomes(table(OURS), table(other))


@settings(max_examples=10, deadline=None)  # every call makes tables
@given(st.permutations(range(len(table(OURS)))))
def test_the_order_of_rows_changes_no_number(order):
    key = {(o.attack, o.variant): o for o in attack_outcomes(table(OURS), table(THEIRS))}
    mixed = {(o.attack, o.variant): o for o in attack_outcomes(table(OURS).iloc[order], table(THEIRS))}
    assert mixed == key
