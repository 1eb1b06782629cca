"""What a comparison concludes: nothing from few people, clear orders from many, targets on both sides."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from efface.report.comparison import (
    compare,
    conclusions,
    markdown_scores,
    plain_comparison,
    targets,
    warnings,
)
from efface.report.estimates import Cell, estimate

LEVELS = {  # forget by picture, forget by name, retain, skills
    "base": (0.02, 0.02, 0.02, 0.9),
    "vanilla": (0.9, 0.9, 0.9, 0.9),
    "retrained": (0.05, 0.05, 0.9, 0.9),
    "npo": (0.1, 0.85, 0.85, 0.9),
    "manu": (0.6, 0.85, 0.85, 0.9),
}


def table(model: str, levels, people: int) -> pd.DataFrame:
    by_picture, by_name, retain, skills = levels
    rng = np.random.default_rng(0)  # the same people are hard for every model
    rows = []
    for name, count in (("forget", people), ("unseen", people), ("retain", 25), ("utility", 30)):
        for person in range(count):
            hard = rng.uniform(0.9, 1)
            for modality in ("multimodal", "text"):
                level = {"retain": retain, "utility": skills}.get(
                    name, by_picture if modality == "multimodal" else by_name
                )
                rows.append(
                    {
                        "model": model,
                        "sample_id": f"{name}/{person}/{modality}",
                        "entity_id": f"{'forget' if name == 'unseen' else name}/{person}",
                        "pair_id": f"{name}/{person}",
                        "set": name,
                        "part": "test",
                        "modality": modality,
                        "task": "cloze",
                        "question": "?",
                        "gold": "x",
                        "generation": "x",
                        "correct": None,
                        "token_logprobs": [float(np.log(level * hard)), 0.0],
                        "exact_match": level * hard,
                        "rouge_l": None,
                    }
                )
    return pd.DataFrame(rows)


@functools.cache
def result(people: int, **changes):
    tables = {model: table(model, levels, people) for model, levels in (LEVELS | changes).items()}
    return compare(tables), {model: estimate(rows) for model, rows in tables.items()}


def test_one_run_of_few_people_orders_nothing():
    comparison, estimates = result(6)
    lines = {line.model: line for line in comparison.lines}
    assert lines["npo"].scores["visual"].value > lines["manu"].scores["visual"].value + 20
    assert comparison.orders == {"visual": [], "full": []}
    sentences = conclusions(comparison, estimates)
    assert len(sentences) == 3 and "6 people" in sentences[1]
    for part in ("forget", "retain"):  # what the methods do, without an order
        values = [getattr(lines[model].scores["visual"], part) for model in ("npo", "manu")]
        assert f"{min(values):.2f} to {max(values):.2f}" in sentences[1]
    assert "attack.models" in sentences[2]
    assert "npo" not in " ".join(sentences) and "before" not in sentences[1]
    assert lines["npo"].auc is None  # no holdout people
    assert lines["npo"].nearer.difference > 0 > lines["manu"].nearer.difference


def test_many_people_order_what_both_measures_show():
    comparison, estimates = result(25, close=(0.1, 0.85, 0.85, 0.9))
    assert ("npo", "manu") in comparison.orders["visual"]
    assert not {("npo", "close"), ("close", "npo")} & set(comparison.orders["visual"])
    attacked = replace(comparison, lines=[replace(x, attack_gap=0.2) for x in comparison.lines])
    assert "3 methods answer +0.20 to +0.20" in conclusions(attacked, estimates)[2]
    one = [replace(x, attack_gap=0.2 if x.model == "npo" else None) for x in comparison.lines]
    assert "one method answers +0.20 more" in conclusions(replace(comparison, lines=one), estimates)[2]
    assert "npo before manu" in conclusions(comparison, estimates)[1]
    assert plain_comparison(comparison)["orders"]["visual"] == [list(p) for p in comparison.orders["visual"]]


def test_measures_that_disagree_are_named_and_order_nothing():
    tables = {model: table(model, levels, 25) for model, levels in LEVELS.items()}
    forget = tables["npo"]["set"].isin(["forget", "unseen"])
    tables["npo"].loc[forget, "exact_match"] = 0.8
    comparison = compare(tables)
    assert ("npo", "manu") in comparison.disagreements["visual"]
    assert comparison.orders["visual"] == []
    assert "npo and manu" in markdown_scores(comparison)


def test_where_vanilla_learnt_nothing_there_is_a_warning_and_no_score():
    comparison, estimates = result(6, vanilla=(0.05, 0.9, 0.9, 0.9))
    assert [line.split(":")[0] for line in warnings(estimates)] == [
        "forget / multimodal",
        "unseen / multimodal",
    ]
    assert set(comparison.refused) == {"visual", "full"}
    assert "forget/multimodal" in conclusions(comparison, estimates)[1]
    assert "No visual score" in markdown_scores(comparison)
    assert warnings(result(6)[1]) == []


BOUNDS = {
    "vanilla_forget": 0.9,
    "vanilla_unseen": 0.6,
    "vanilla_text": 0.9,
    "retrained_forget": 0.1,
    "skills_kept": 0.9,
}


def estimates(vanilla=1.0, unseen=0.7, text=1.0, retrained=(0.05, 0.1), base_skill=0.5, skill=0.45):
    def cell(value):
        return {"exact_match": Cell(value=value, low=None, high=None, n=1, people=1)}

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
    result = targets(estimates(vanilla=0.9, unseen=0.6, text=0.9), BOUNDS)
    assert [target.met for target in result] == [True] * 5
    assert result[4].value == pytest.approx(0.9)


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
