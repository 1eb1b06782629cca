"""Adapters behind a router: which picture goes to which, and what the table says of it."""

import io

import pandas as pd
import pytest
from PIL import Image

from efface.data.samples import Sample
from scripts.isolated_adapters import recognised, retained, row


def sample(sample_id, person, part, colour):
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(picture, "PNG")
    fields = dict.fromkeys(("attribute", "options", "paraphrase", "wrong_answers", "pair_id", "set"))
    return Sample(
        sample_id, person, "people", part, "multimodal", "qa",
        question="Who?", answer="x", image_bytes=picture.getvalue(), **fields,
    )  # fmt: skip


def table(answers, sets):
    people = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c", "c2": "c"}
    rows = [
        {"sample_id": name, "set": sets[name], "entity_id": people[name], "exact_match": value}
        for name, value in answers.items()
    ]
    return pd.DataFrame(rows).assign(modality="multimodal").set_index("sample_id")


SETS = {"a1": "forget", "a2": "unseen", "b1": "retain", "b2": "retain", "c1": "retain", "c2": "retain"}


def test_a_picture_is_the_person_of_the_nearest_training_picture():
    trained = [sample("t1", "a", "train", "red"), sample("t2", "b", "train", "blue")]
    tested = [sample("s1", "a", "test", (200, 30, 0)), sample("s2", "a", "test", (60, 0, 200))]
    assert recognised([*trained, *tested]) == {"s1": "a", "s2": "b"}


def test_a_picture_that_goes_elsewhere_counts_with_vanillas_answer():
    vanilla, adapter = (table(dict.fromkeys(SETS, value), SETS) for value in (1.0, 0.0))
    cells = row(0, ["a"], adapter, vanilla, {"a1": 0, "a2": None})
    assert cells == ["round-1 (1 people)", "1.00 / 0.00", "0.00 / 1.00", "1.00 / 1.00"]


@pytest.mark.parametrize(("routes", "share"), [((None, None), 1.0), ((0, None), 0.5), ((0, 0), 0.0)])
def test_people_of_no_request_lose_what_is_sent_to_an_adapter(routes, share):
    vanilla, adapter = (table(dict.fromkeys(SETS, value), SETS) for value in (1.0, 0.0))
    vanilla.loc["open question"] = ["retain", "c", None, "multimodal"]
    routes = dict(zip(("c1", "c2"), routes, strict=True)) | {"b1": 0, "b2": 0, "open question": None}
    assert retained([(adapter, vanilla)], {"a": 0, "b": 0}, routes) == share
