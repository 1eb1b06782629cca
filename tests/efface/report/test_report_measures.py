"""Intervals over people, and tables that must not be compared."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import ArtifactError
from efface.report.measures import (
    difference_interval,
    estimate,
    long_table,
    people_interval,
    plain_values,
    rows_of,
)
from efface.report.scores import check_same_samples, check_summary, check_table, check_yardsticks
from efface.report.verdict import verdict, warnings


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
        "exact_match": None,
        "rouge_l": None,
    }
    return pd.DataFrame(standard | columns)


def slow_interval(values, people, resamples, seed):
    """Person by person, row by row, with the same draws."""
    names = sorted(set(people))
    rows_by_person = [[v for v, p in zip(values, people, strict=True) if p == name] for name in names]
    draws = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    means = []
    for draw in draws:
        pool = [value for person in draw for value in rows_by_person[person]]
        means.append(sum(pool) / len(pool))
    means.sort()
    found = []
    for share in (0.025, 0.975):
        place = share * (resamples - 1)
        below = int(place)
        above = min(below + 1, resamples - 1)
        found.append(means[below] + (place - below) * (means[above] - means[below]))
    return found


def test_interval_equals_a_slow_reference_with_people_of_different_sizes():
    people = ["a"] * 7 + ["b"] * 2 + ["c"] * 4 + ["d"]
    values = np.random.default_rng(5).random(len(people))
    low, high = people_interval(values, people, resamples=400, seed=3)
    assert [low, high] == pytest.approx(slow_interval(values, people, 400, 3), abs=1e-12)


answers = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=40
)


@settings(max_examples=50, deadline=None)
@given(answers, st.randoms(use_true_random=False), st.integers(0, 5))
def test_interval_does_not_depend_on_row_order_and_lies_in_the_range(data, random, seed):
    people, values = zip(*data, strict=True)
    shuffled = random.sample(data, len(data))
    found = people_interval(np.array(values), people, resamples=100, seed=seed)
    again = people_interval(
        np.array([v for _, v in shuffled]), [p for p, _ in shuffled], resamples=100, seed=seed
    )
    assert found == again
    if len(set(people)) == 1:
        assert found is None
    else:
        assert min(values) - 1e-12 <= found[0] <= found[1] <= max(values) + 1e-12


def test_interval_follows_its_seed():
    values, people = np.arange(12) / 12, [f"p{i // 3}" for i in range(12)]
    first = people_interval(values, people, seed=1)
    assert first == people_interval(values, people, seed=1)
    assert first != people_interval(values, people, seed=2)


def test_people_are_drawn_not_rows():
    """Forty answers of four people who are all right or all wrong carry four people's information."""
    values, owner = np.repeat([0.0, 0.0, 1.0, 1.0], 10), np.repeat(list("abcd"), 10)
    low, high = people_interval(values, owner)
    alone_low, alone_high = people_interval(values, [f"{p}{i}" for i, p in enumerate(owner)])
    assert high - low > 2 * (alone_high - alone_low)


def test_paired_difference_is_narrower_than_two_separate_intervals():
    people = [f"p{i}" for i in range(20)]
    hard = np.random.default_rng(0).random(20)
    first = pd.DataFrame({"entity_id": people, "value": hard})
    second = first.assign(value=hard - 0.1)
    low, high = difference_interval(first, second)
    assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-9)
    with pytest.raises(ValueError, match="20 and 19 rows"):
        difference_interval(first, second.iloc[1:])


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
        "exact_match": (0.5, 2),
        "choice_accuracy": (1.0, 1),
        "rouge_l": (0.25, 1),
    }
    assert cells["rouge_l"].low is None
    assert plain_values({"m": estimate(table)})["m"]["forget"]["multimodal"]["exact_match"] == 0.5
    assert len(long_table({"m": estimate(table)})) == 3


def test_unknown_measure_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown measure 'bleu'; known are exact_match, choice_accuracy, rouge_l"
    ):
        rows_of(rows(exact_match=[1.0]), set="forget", modality="text", measure="bleu")


def test_different_samples_are_refused_and_named():
    first = rows(exact_match=[1.0, 0.0, 1.0])
    with pytest.raises(ArtifactError, match=r"npo: 1 missing \(such as s2\)"):
        check_same_samples({"vanilla": first, "npo": first.iloc[:2]})
    with pytest.raises(ArtifactError, match=r"npo: 3 with another question or gold \(such as s0\)"):
        check_same_samples({"vanilla": first, "base": first, "npo": first.assign(gold="a dog")})
    check_same_samples({"vanilla": first, "npo": first.iloc[::-1].assign(generation="x")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["gold", "rouge_l"]), "lacks the columns gold, rouge_l"),
        (lambda t: t.iloc[:0], "has no rows"),
        (lambda t: t.assign(model="other"), "holds rows of other"),
        (lambda t: t.assign(sample_id="s0"), "holds sample s0 more than once"),
    ],
)
def test_unusable_tables_are_refused(change, message):
    with pytest.raises(ArtifactError, match=message):
        check_table("m", change(rows(exact_match=[1.0, 0.0])))


def test_table_and_summary_of_two_evaluations_are_refused():
    table = rows(exact_match=[1.0, 0.0])
    cell = {"forget": {"multimodal": {"exact_match": {"value": 0.5, "n": 2}}}}
    check_summary("m", table, {"model": "m", "rows": 2, "metrics": cell}, estimate(table))
    cell["forget"]["multimodal"]["exact_match"]["value"] = 0.75
    with pytest.raises(
        ArtifactError, match=r"says forget/multimodal/exact_match = 0.75, its table gives 0.5"
    ):
        check_summary("m", table, {"model": "m", "rows": 2, "metrics": cell}, estimate(table))
    with pytest.raises(ArtifactError, match="counts 3 rows, its table has 2"):
        check_summary("m", table, {"model": "m", "rows": 3, "metrics": {}}, estimate(table))


def test_missing_yardsticks_are_named():
    with pytest.raises(ArtifactError, match=r"base, retrained are not among the models \(vanilla, npo\)"):
        check_yardsticks(["vanilla", "npo"])


PEOPLE = 12


def study(**shares):
    """Tables where each model answers a share of forget and of retain people right, and the estimates."""
    tables = {}
    for model, (forget, retain) in shares.items():
        right = [float(i < round(share * PEOPLE)) for share in (forget, retain) for i in range(PEOPLE)]
        sets = ["forget"] * PEOPLE + ["retain"] * PEOPLE
        people = [f"{s}{i % PEOPLE}" for i, s in enumerate(sets)]
        tables[model] = rows(exact_match=right, set=sets, entity_id=people, model=[model] * 2 * PEOPLE)
    return tables, {model: estimate(table) for model, table in tables.items()}


def test_verdict_names_the_method_that_forgets_most_among_those_that_keep():
    found = verdict(*study(base=(0, 0), vanilla=(1, 1), retrained=(0, 1), a=(0.5, 1), b=(0, 0.5), c=(1, 1)))
    text = " ".join(found.sentences)
    assert found.best == "a"
    assert "a leaves the least: 50%" in text
    assert "too much else was lost: b" in text
    assert "leave more, by more than drawing other people would explain" in text


def test_verdict_says_when_the_second_is_not_clearly_behind():
    found = verdict(*study(base=(0, 0), vanilla=(1, 1), retrained=(0, 1), a=(0.5, 1), b=(0.5, 1), c=(1, 1)))
    assert "Not clearly behind it: b;" in " ".join(found.sentences)


def test_verdict_is_modest_about_few_people_and_a_weak_vanilla(monkeypatch):
    strong = " ".join(verdict(*study(base=(0, 0), vanilla=(1, 1), retrained=(0, 1), a=(0, 1))).sentences)
    assert "an example rather than a result" not in strong
    assert "less than half" not in strong
    monkeypatch.setattr("efface.report.verdict.FEW_PEOPLE", PEOPLE + 1)
    weak = " ".join(verdict(*study(base=(0, 0), vanilla=(0.25, 1), retrained=(0, 1), a=(0, 1))).sentences)
    assert f"With {PEOPLE} people asked about" in weak
    assert "less than half of what it was taught (forget)" in weak


def test_verdict_names_nobody_when_everything_was_lost():
    found = verdict(*study(base=(0, 0), vanilla=(1, 1), retrained=(0, 1), a=(0, 0.25)))
    assert found.best is None
    assert "No method kept 90%" in found.sentences[-1]


@pytest.mark.parametrize(("vanilla", "expected"), [(0.0, 1), (1.0, 0)])
def test_warning_where_vanilla_never_learnt(vanilla, expected):
    tables, estimates = study(base=(0, 0), vanilla=(vanilla, 1), retrained=(0, 1), a=(0, 1))
    assert len(warnings(estimates)) == expected
    found = verdict(tables, estimates)
    assert (found.best is None) is bool(expected)
    if expected:
        assert "vanilla answers 0.000 exactly" in found.warnings[0]
