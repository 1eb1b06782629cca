"""Folds hold every person once; validation people come from splits that are large enough."""

import pytest

from efface.data.splits import check_attributes, draw_fold, draw_validation
from tests.efface.data.conftest import refusal


def people(**counts):
    return {split: [f"{split}/{i:03}" for i in range(n)] for split, n in counts.items()}


def drawn(fraction, seed=0, **counts):
    validation = draw_validation(people(**counts), fraction=fraction, seed=seed)
    return {split: sum(c.startswith(f"{split}/") for c in validation) for split in counts}


@pytest.mark.parametrize(
    ("fraction", "forget", "expected"),
    [(0.15, 6, 1), (0.15, 4, 1), (0.01, 4, 1), (0.15, 3, 0), (0.0, 60, 0), (0.5, 60, 30), (0.99, 5, 4)],
)
def test_the_share_is_kept_with_room_to_test(fraction, forget, expected):
    assert drawn(fraction, forget=forget, retain=20)["forget"] == expected


def test_only_forget_and_retain_people_are_drawn():
    assert drawn(0.2, forget=10, retain=50, real=10, holdout=10) == {
        "forget": 2, "retain": 10, "real": 0, "holdout": 0,
    }  # fmt: skip


def test_the_seed_decides():
    crowd = people(forget=20, retain=40)
    first = draw_validation(crowd, fraction=0.2, seed=0)
    assert first == draw_validation(crowd, fraction=0.2, seed=0)
    assert first != draw_validation(crowd, fraction=0.2, seed=1)


@pytest.mark.parametrize(("count", "folds"), [(60, 8), (8, 8), (9, 2)])
def test_each_person_is_in_one_fold(count, folds):
    people_ids = [f"fictitious/{i:03}" for i in range(count)]
    sets = [draw_fold(people_ids, folds=folds, fold=fold, seed=3) for fold in range(folds)]
    assert sorted(person for people in sets for person in people) == people_ids
    assert {len(people) for people in sets} <= {count // folds, -(-count // folds)}
    assert sets == [draw_fold(people_ids[::-1], folds=folds, fold=fold, seed=3) for fold in range(folds)]
    assert sets != [draw_fold(people_ids, folds=folds, fold=fold, seed=4) for fold in range(folds)]


def test_fewer_people_than_folds_are_refused():
    with refusal("folds is 6", 5):
        draw_fold([f"fictitious/{i}" for i in range(5)], folds=6, fold=0, seed=0)


def test_rows_that_name_no_fact_cannot_stay_in_part():
    attributes = {"fictitious/001": {"pet", None}}
    with refusal("fictitious/001", "column attribute"):
        check_attributes({"fictitious/001": ["pet"]}, attributes)
    check_attributes({"fictitious/001": ["pet"]}, {"fictitious/001": {"pet", "name"}})
