"""Side effects against closed forms on constructed tables: neighbours, perception, what is left, traces."""

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from efface.errors import ArtifactError
from efface.evaluation.side_effects import metrics_of, neighbour_groups, side_effects, thumbnail

FORGET, RETAIN = ["f/1", "f/2"], [f"r/{number}" for number in range(1, 16)]
NAMES = {"f/1": "Ada Stone", "f/2": "Bo Lind"} | {person: f"Q{person[2:]} Xyz" for person in RETAIN}
NAMES |= {"r/2": "Ada Stone-Hill", "r/3": "Bo  LIND"}


def table(level, **people):
    """Two facts of each person by picture and in text, and what else the pictures of the people show."""
    rows = []
    for person in FORGET + RETAIN:
        sets = ("forget", "unseen", "perception") if person in FORGET else ("retain",)
        for name in sets:
            for modality in ("multimodal",) if name == "perception" else ("multimodal", "text"):
                for attribute in ("pet", "home"):
                    value = people.get(person.replace("/", ""), level)
                    value = people.get("seen", 0.8) if name == "perception" else value
                    same = person in ("f/1", "r/1")
                    rows.append(
                        {
                            "set": name,
                            "part": "test",
                            "modality": modality,
                            "task": "qa",
                            "entity_id": person,
                            "sample_id": f"{person}/{name}/{modality}/{attribute}",
                            "attribute": attribute,
                            "question": attribute,
                            "gold": f"{attribute} {'same' if same else person}",
                            "generation": "",
                            # In text everything is kept: holes by picture must not be averaged with it.
                            "token_logprobs": [math.log(value if modality == "multimodal" else 0.9), -0.1],
                        }
                    )
    return pd.DataFrame(rows)


BASE, VANILLA = table(0.1), table(0.9)
FLOOR = table(0.9, f1=0.1, f2=0.1)
GROUPS = {"facts": ["r/1"], "name": ["r/2", "r/3"]}


def measured(model, **options):
    settings = {"base": BASE, "vanilla": VANILLA, "floor": FLOOR, "groups": GROUPS} | options
    return side_effects(model, **settings)


def test_what_is_kept_of_neighbours_is_between_base_and_vanilla_and_by_picture():
    effects = measured(table(0.9, r1=0.5, r2=0.3, r3=0.7, f1=0.1, f2=0.1))
    assert effects.kept["facts"].value == pytest.approx(0.5) and effects.kept["facts"].people == 1
    name = effects.kept["name"]
    assert (name.value, name.people) == (pytest.approx(0.5), 2)  # (0.3 + 0.7) / 2 = 0.5 of 0.1 to 0.9
    assert name.low < 0.25 and name.high > 0.75  # two people who disagree
    assert effects.kept["others"].value == pytest.approx(1.0) and effects.kept["others"].people == 12


def test_one_person_left_shows_beside_the_mean_and_below_the_floor_is_a_trace():
    effects = measured(table(0.9, f1=0.9, f2=0.02))
    assert (effects.left, effects.worst, effects.worst_person) == (
        pytest.approx(0.45),
        pytest.approx(1.0),
        "f/1",
    )
    assert effects.below == pytest.approx(0.05)  # 0.08 of a lead of 0.8, of one person of two
    assert effects.spread == pytest.approx(np.std([1.0, -0.1], ddof=1))
    even = measured(table(0.9, f1=0.5, f2=0.5))
    assert (even.left, even.worst, even.spread, even.below) == pytest.approx((0.5, 0.5, 0.0, 0.0))


def test_perception_is_what_is_still_seen_in_the_same_pictures():
    assert measured(table(0.9, seen=0.4)).perception.value == pytest.approx(0.5)
    silent = {
        n: t[t["set"] != "perception"] for n, t in (("base", BASE), ("vanilla", VANILLA), ("floor", FLOOR))
    }
    assert measured(silent["vanilla"], **silent).perception is None


def test_what_vanilla_never_learnt_is_not_available_and_other_samples_are_refused():
    blind = table(0.1)
    effects = measured(blind, vanilla=blind, floor=blind)
    assert set(effects.kept.values()) == {None} and effects.left is None and effects.worst is None
    assert set(metrics_of(asdict(effects))) == {"side_effects/perception"}
    with pytest.raises(ArtifactError):
        measured(table(0.9).iloc[1:])


def test_mlflow_gets_every_number_that_there_is():
    numbers = metrics_of(asdict(measured(table(0.9, f1=0.1, f2=0.1))))
    kept = {f"side_effects/kept/{name}" for name in ("facts", "name", "others")}
    rest = {f"side_effects/{name}" for name in ("perception", "left", "worst", "spread", "below")}
    assert set(numbers) == kept | rest and numbers["side_effects/left"] == pytest.approx(0.0)
    assert metrics_of({}) == {}


def test_neighbours_are_those_alike_by_picture_by_name_and_by_facts():
    colours = {p: (200, 10 * i, 10 * i) for i, p in enumerate(RETAIN)} | {"f/1": (200, 73, 73)}
    thumbnails = {p: thumbnail(Image.new("RGB", (40, 60), colour)) for p, colour in colours.items()}
    groups = neighbour_groups(VANILLA, FORGET, names=NAMES, thumbnails=thumbnails)
    assert groups["picture"] == ["r/10", "r/6", "r/7", "r/8", "r/9"]  # 70, 80, 60, 90, 50
    assert {"r/2", "r/3"} < set(groups["name"])
    assert "r/1" in groups["facts"]
    assert {len(group) for group in groups.values()} == {5}
    without = neighbour_groups(VANILLA, FORGET, names={}, thumbnails={})
    assert set(without) == {"facts"}


def test_a_thumbnail_is_the_middle_of_the_picture():
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste(Image.new("RGB", (32, 32), "blue"), (16, 16))
    cells = thumbnail(picture).reshape(8, 8, 3)
    assert np.array_equal(cells, np.broadcast_to([0.0, 0.0, 1.0], (8, 8, 3)))
