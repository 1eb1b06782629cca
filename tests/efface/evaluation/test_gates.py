"""Gates: forgetting is checked for every request, retention as a share of what vanilla knows."""

import pandas as pd
import pytest

from efface.errors import ArtifactError
from efface.evaluation.gates import RETAINED_SETS, Gate, gates, knowledge, retained, share_retained

LIMITS = {"forget_at_most": 0.35, "retain_at_least": 0.9, "utility_at_least": 0.9}


def rows(person, kind, modality, values, part="test"):
    return [
        {
            "sample_id": f"{person}/{kind}/{modality}/{part}/{i}",
            "entity_id": person,
            "set": kind,
            "modality": modality,
            "part": part,
            "task": "choice",
            "question": "q",
            "gold": "g",
            "generation": "g",
            "exact_match": value,
        }
        for i, value in enumerate(values)
    ]


def table(ann=(0, 0), unseen=(0, 1), bo=(1, 1), keep=(1, 1, 1, 0), by_name=(1, 1), real=(1,), skill=(1, 1)):
    result = rows("ann", "forget", "multimodal", ann) + rows("ann", "unseen", "multimodal", unseen)
    result += rows("ann", "forget", "text", by_name) + rows("bo", "forget", "multimodal", bo)
    result += rows("cy", "retain", "multimodal", keep) + rows("cy", "retain", "text", (1, 0))
    result += rows("real/1", "real", "multimodal", real) + rows("s/1", "utility", "multimodal", skill)
    result += rows("ann", "forget", "multimodal", (1, 1, 1), part="validation")
    return pd.DataFrame(result)


def test_knowledge_is_of_these_people_and_by_kind_of_question():
    assert knowledge(table(), ["ann"]) == {"seen": 0.0, "unseen": 0.5, "by_name": 1.0}
    assert knowledge(table(), ["bo"]) == {"seen": 1.0, "unseen": None, "by_name": None}
    assert knowledge(table(), ["ann", "bo"])["seen"] == 0.5
    assert set(knowledge(table(), ["zoe"]).values()) == {None}


def test_what_is_kept_weighs_modalities_and_sets_alike_not_questions():
    assert retained(table(), RETAINED_SETS["retain"]) == (0.75 + 0.5) / 2
    assert retained(table(real=(0,), skill=(1,) * 9), RETAINED_SETS["utility"]) == 0.5
    assert retained(table(), ["holdout"]) is None
    assert share_retained(table(), table(keep=(1, 1, 1, 1)), RETAINED_SETS["retain"]) == pytest.approx(
        0.625 / 0.75
    )
    assert share_retained(table(), table(real=(0,), skill=(0, 0)), RETAINED_SETS["utility"]) is None


def test_each_request_has_a_gate_of_its_own_and_the_worse_picture_counts():
    result = gates(table(), table(), {"A": ["ann"], "B": ["bo"]}, **LIMITS)
    assert [(g.name, g.about, g.value, g.passed) for g in result] == [
        ("forget", "A", 0.5, False),
        ("forget", "B", 1.0, False),
        ("retain", None, 1.0, True),
        ("utility", None, 1.0, True),
    ]
    assert str(result[0]) == "forget of A 0.500, expected at most 0.35"
    good = table(unseen=(0, 0))
    assert gates(good, table(), {"A": ["ann"]}, **LIMITS)[0].passed


def test_every_request_is_checked_rather_than_their_mean():
    both = table(ann=(0, 0), unseen=(0, 0), bo=(1, 0))
    assert knowledge(both, ["ann", "bo"])["seen"] <= 0.35
    assert not gates(both, table(), {"A": ["ann"], "B": ["bo"]}, **LIMITS)[1].passed


def test_values_at_the_limit_pass_and_none_gives_no_gate():
    assert Gate("forget", "A", 0.35, 0.35, "at most").passed
    assert Gate("retain", None, 0.9, 0.9, "at least").passed
    names = [g.name for g in gates(table(), table(), {}, **LIMITS | {"retain_at_least": 0.0})]
    assert names == ["utility"]


def test_what_cannot_be_measured_does_not_pass():
    (result,) = gates(table(), table(), {"Z": ["zoe"]}, **LIMITS)[:1]
    assert not result.passed and result.plain()["passed"] is False
    assert str(result) == "forget of Z could not be measured, expected at most 0.35"


def test_tables_of_other_questions_do_not_compare():
    with pytest.raises(ArtifactError) as error:
        gates(table(), table(keep=(1, 1)), {"A": ["ann"]}, **LIMITS)
    assert "the new model" in str(error.value) and "extra" in str(error.value)
