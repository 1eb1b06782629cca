"""Targets: each bound looks the right way, and nothing scored is nothing met."""

from __future__ import annotations

import pytest

from efface.report.measures import Estimate
from efface.report.targets import targets

BOUNDS = {
    "vanilla_forget": 0.9,
    "vanilla_unseen": 0.6,
    "vanilla_text": 0.9,
    "retrained_forget": 0.1,
    "skills_kept": 0.9,
}


def estimates(vanilla=1.0, unseen=0.7, text=1.0, retrained=(0.05, 0.1), base_skill=0.5, skill=0.45):
    def cell(value):
        return {"exact_match": Estimate(value=value, low=None, high=None, n=1, people=1)}

    return {
        "base": {"utility": {"multimodal": cell(base_skill)}},
        "vanilla": {
            "forget": {"multimodal": cell(vanilla), "text": cell(text)},
            "unseen": {"multimodal": cell(unseen)},
            "utility": {"multimodal": cell(skill)},
        },
        "retrained": {"forget": {"multimodal": cell(retrained[0]), "text": cell(retrained[1])}},
    }


def test_all_met_exactly_on_the_bounds():
    found = targets(estimates(vanilla=0.9, unseen=0.6, text=0.9), BOUNDS)
    assert [target.met for target in found] == [True] * 5
    assert found[4].value == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"vanilla": 0.89}, 0),
        ({"unseen": 0.59}, 1),
        ({"text": 0.89}, 2),
        ({"retrained": (0.05, 0.11)}, 3),
        ({"retrained": (0.11, 0.05)}, 3),
        ({"skill": 0.44}, 4),
        ({"base_skill": 0.0}, 4),
    ],
)
def test_each_is_missed_by_itself(change, missed):
    met = [target.met for target in targets(estimates(**change), BOUNDS)]
    assert met == [position != missed for position in range(5)]


def test_what_was_not_scored_is_not_met():
    partial = estimates()
    del partial["vanilla"]["unseen"]
    assert not targets(partial, BOUNDS)[1].met
