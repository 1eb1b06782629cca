"""Validation people are drawn from those who can spare them."""

import pytest

from efface.data.samples import Sample
from efface.data.splits import draw_validation, with_validation
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


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_outside_the_range_is_an_error(fraction):
    with refusal(fraction, "[0, 1)"):
        draw_validation(people(forget=9), fraction=fraction, seed=0)


def test_only_evaluation_rows_of_the_drawn_move():
    def sample(entity, part):
        return Sample.from_row({"sample_id": entity + part, "entity_id": entity, "part": part})

    moved = list(with_validation([sample("a", "train"), sample("a", "test"), sample("b", "test")], ["a"]))
    assert [s.part for s in moved] == ["train", "validation", "test"]
