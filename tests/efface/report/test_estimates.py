"""Estimates with intervals over people, and tables that must not be compared."""

import math

import pandas as pd
import pytest
from scipy import stats

from efface.errors import ArtifactError
from efface.evaluation.intervals import share_interval
from efface.evaluation.tables import check_same_samples
from efface.report.checks import check_reference_models, check_table
from efface.report.estimates import curve_rows, estimate, long_table, plain_values


def rows(**columns) -> pd.DataFrame:
    """A score table from columns, the rest filled with what most rows hold."""
    size = len(next(iter(columns.values())))
    standard = {
        "model": "m",
        "benchmark": "avatars",
        "set": "forget",
        "part": "test",
        "modality": "multimodal",
        "task": "cloze",
        "attribute": "pet",
        "entity_id": [f"p{i}" for i in range(size)],
        "sample_id": [f"s{i}" for i in range(size)],
        "pair_id": None,
        "question": "Which?",
        "gold": "a cat",
        "generation": "a cat",
        "correct": None,
        "token_logprobs": [[math.log(0.5), -1e-3]] * size,
        "exact_match": None,
        "rouge_l": None,
    }
    return pd.DataFrame(standard | columns)


def test_estimates_use_the_test_part_and_the_tasks_of_each_measure():
    table = rows(
        task=["cloze", "choice", "generation", "cloze"],
        exact_match=[1.0, 0.0, None, 0.0],
        correct=[None, True, None, None],
        rouge_l=[None, None, 0.25, None],
        part=["test", "test", "test", "validation"],
    )
    cells = estimate(table)["forget"]["multimodal"]
    assert {name: (cell.value, cell.n) for name, cell in cells.items()} == {
        "knowledge": (pytest.approx(0.5), 2),  # questions for a fact, the end token left out
        "exact_match": (0.5, 2),
        "choice_accuracy": (1.0, 1),
        "rouge_l": (0.25, 1),
    }
    assert cells["rouge_l"].low is None
    assert plain_values({"m": estimate(table)})["m"]["forget"]["multimodal"]["exact_match"] == 0.5
    assert len(long_table({"m": estimate(table)})) == 4


def test_intervals_are_over_people_and_within_the_range():
    right = [0.5, 0.5, 0.6, 0.6, 0.5, 0.5]
    table = rows(exact_match=right, entity_id=["a", "a", "b", "b", "c", "c"])
    cell = estimate(table)["forget"]["multimodal"]["exact_match"]
    people = [0.5, 0.6, 0.5]
    expected = share_interval(1.6 / 3, stats.sem(people), 3)
    assert (cell.low, cell.high, cell.people) == (*map(pytest.approx, expected), 3)
    agreed = rows(exact_match=[1.0, 1.0, 1.0], entity_id=["a", "b", "c"])
    cell = estimate(agreed)["forget"]["multimodal"]["exact_match"]
    # Three people who agree prove little: Jeffreys' bound.
    assert cell.low == pytest.approx(stats.beta.ppf(0.025, 3.5, 0.5)) and cell.high == pytest.approx(
        1, abs=1e-3
    )


def test_curves_share_one_front():
    points = {"a": [{"step": 0, "forget_known": 1.0, "retain_known": 0.9}], "b": []}
    points["b"] = [{"step": 5, "forget_known": 0.5, "retain_known": 0.95}]
    assert [(row["model"], row["on_front"]) for row in curve_rows(points)] == [("a", False), ("b", True)]


def test_different_samples_are_refused_and_named():
    first = rows(exact_match=[1.0, 0.0, 1.0])
    for second, expected in ((first.iloc[:2], "1 missing"), (first.assign(gold="a dog"), "3 with another")):
        with pytest.raises(ArtifactError) as error:
            check_same_samples({"vanilla": first, "base": first, "npo": second})
        assert f"npo: {expected}" in str(error.value) and "such as s" in str(error.value)
    check_same_samples({"vanilla": first, "npo": first.iloc[::-1].assign(generation="x")})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.drop(columns=["gold", "rouge_l"]), "gold, rouge_l"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(model="npo"), "npo"),
        (lambda t: t.assign(sample_id="s0"), "s0"),
    ],
)
def test_unusable_tables_are_refused(change, expected):
    with pytest.raises(ArtifactError) as error:
        check_table("m", change(rows(exact_match=[1.0, 0.0])))
    assert "table of m" in str(error.value) and expected in str(error.value)


def test_missing_reference_models_are_named():
    with pytest.raises(ArtifactError) as error:
        check_reference_models(["vanilla", "npo"])
    assert "models are vanilla, npo" in str(error.value) and "missing base, retrained" in str(error.value)
