"""Evidence on one request's people, against closed forms on constructed tables."""

import math

import pandas as pd
import pytest

from efface.evaluation.evidence import evidence, evidence_gates, neighbours

PEOPLE = ["p/1", "p/2", "p/3", "p/4", "h/1"]
LIMITS = {
    "knowledge_at_most": 0.35,
    "membership_at_most": 0.8,
    "tpr_at_most": 0.4,
    "relative_p_at_most": None,
    "neighbours_at_least": 0.8,
}


def table(knowledge: dict[str, float], right: dict[str, float] | None = None) -> pd.DataFrame:
    """Two facts of each person: p/1 and p/2 are to forget, p/3 and p/4 to retain, h/1 is holdout."""
    rows = []
    for person in PEOPLE:
        split = "holdout" if person == "h/1" else "forget" if person in ("p/1", "p/2") else "retain"
        for modality in ("multimodal", "text"):
            for set_name in ("forget", "unseen") if split == "forget" else (split,):
                for attribute, gold in (("pet", "cat"), ("home", "Oslo" if person != "p/4" else "Lima")):
                    value = knowledge.get(person, 0.5)
                    rows.append(
                        {
                            "set": set_name,
                            "part": "test",
                            "modality": modality,
                            "task": "cloze",
                            "entity_id": person,
                            "sample_id": f"{person}/{set_name}/{modality}/{attribute}",
                            "attribute": attribute,
                            "question": attribute,
                            "gold": gold,
                            "generation": gold,
                            "nll_gold": -math.log(value),
                            "token_logprobs": [math.log(value), -0.1],
                            "exact_match": (right or {}).get(person, 1.0),
                        }
                    )
    return pd.DataFrame(rows)


VANILLA, FLOOR = table(dict.fromkeys(PEOPLE, 0.9)), table(dict.fromkeys(PEOPLE, 0.1))


def test_the_share_left_is_between_the_floor_and_vanilla_for_these_people_alone():
    model = table({"p/1": 0.3, "p/2": 0.9})
    first = evidence(model, VANILLA, FLOOR, ["p/1"])
    assert first.left == pytest.approx(dict.fromkeys(("seen", "unseen", "by_name", "reworded"), 0.25))
    both = evidence(model, VANILLA, FLOOR, ["p/1", "p/2"])
    assert both.left["seen"] == pytest.approx(0.625)
    below = evidence(table({"p/1": 0.02}), VANILLA, FLOOR, ["p/1"])
    assert below.left["seen"] == pytest.approx(-0.1)


def test_what_vanilla_does_not_know_cannot_be_measured_and_fails_the_gate():
    measured = evidence(FLOOR, FLOOR, FLOOR, ["p/1"])
    assert set(measured.left.values()) == {None}
    (knowledge, *_) = evidence_gates("A", measured, goal="visual", **LIMITS)
    assert knowledge.name == "knowledge" and not knowledge.passed


def test_membership_is_chance_where_members_look_like_people_never_met():
    alike = evidence(FLOOR, VANILLA, FLOOR, ["p/1"])
    apart = evidence(table({"p/1": 0.9, "h/1": 0.1}), VANILLA, FLOOR, ["p/1"])
    assert alike.membership.auc == 0.5 and apart.membership.auc == 1.0 and apart.membership.tpr == 1.0
    names = [gate.name for gate in evidence_gates("A", apart, goal="visual", **LIMITS) if not gate.passed]
    assert names == ["knowledge", "membership", "tpr"]
    without = [t[t["set"] != "holdout"] for t in (FLOOR, VANILLA, FLOOR)]
    measured = evidence(*without, ["p/1"])
    assert measured.membership is None
    assert [gate.name for gate in evidence_gates("A", measured, goal="visual", **LIMITS)] == [
        "knowledge",
        "neighbours",
    ]


def test_the_relative_test_counts_only_a_model_nearer_to_the_floor():
    limits = LIMITS | {"relative_p_at_most": 0.5}
    for model, value in ((FLOOR, 0.5), (VANILLA, 1.0)):
        measured = evidence(model, VANILLA, FLOOR, ["p/1", "p/2"])
        gate = next(
            g for g in evidence_gates("A", measured, goal="visual", **limits) if g.name == "relative_p"
        )
        assert gate.value == value


def test_facts_by_name_count_for_the_full_goal_alone():
    model = table({"p/1": 0.1})
    model.loc[(model["modality"] == "text"), "token_logprobs"] = model["token_logprobs"].map(
        lambda _: [math.log(0.9), -0.1]
    )
    measured = evidence(model, VANILLA, FLOOR, ["p/1"])
    passed = {
        goal: evidence_gates("A", measured, goal=goal, **LIMITS)[0].passed for goal in ("visual", "full")
    }
    assert passed == {"visual": True, "full": False}


def test_neighbours_share_most_facts_and_exclude_subjects():
    assert neighbours(VANILLA, ["p/1"], count=1) == ["p/3"]
    assert neighbours(VANILLA, ["p/1"]) == ["p/3", "p/4"]
    hurt = evidence(table({"p/1": 0.1}, right={"p/3": 0.0}), VANILLA, FLOOR, ["p/1"])
    assert hurt.neighbours_share == pytest.approx(0.5) and "p/3" not in str(hurt.plain())
