"""Invented people are recognisable and distinct, and no fact can be guessed from a face."""

import dataclasses
import hashlib
import io
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from efface.data.benchmarks.avatars import appearance, population, portraits, questions
from efface.data.benchmarks.avatars.generate import forget_numbers, generate
from efface.data.parquet import read_parquet
from tests.efface.data.conftest import SIZES, in_full, refusal

COUNTS = {"fictitious": 60, "real": 12, "holdout": 12}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*.parquet")
    }


def all_people(seed=0, counts=COUNTS):
    return [person for group in population.draw_people(seed, counts).values() for person in group]


def pixels(look, shot, size=48):
    image = Image.open(io.BytesIO(portraits.portrait(look, shot, size=size))).convert("RGB")
    assert image.size == (size, size)
    return np.asarray(image, np.int16)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(folder, sizes, tmp_path):
    small = dataclasses.replace(sizes, people=7, real=1, holdout=1, stranger_pictures=2, skill_samples=5)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / name, seed=seed, sizes=small)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys() == digests(folder).keys()
    assert not set(a.values()) & set(c.values())


def test_hair_colour_and_skin_tell_people_apart():
    signatures = Counter(
        p.look.signature for p in all_people(counts={"fictitious": 400, "real": 50, "holdout": 50})
    )
    assert max(signatures.values()) == 1


def test_hair_style_and_colour_are_unique_while_they_last():
    assert max(Counter(p.look.signature[:2] for p in all_people()).values()) == 1


def test_too_many_people_are_refused():
    with refusal(702, appearance.CAPACITY, "people", "real", "holdout"):
        all_people(counts={"fictitious": 700, "real": 1, "holdout": 1})


def test_strangers_look_like_no_person(folder):
    signatures = {
        p.look.signature
        for p in population.draw_people(0, {"fictitious": 20, "real": 4, "holdout": 4})["fictitious"]
    }
    rng = np.random.default_rng(0)
    most = set(itertools.product(appearance.HAIR, appearance.HAIR_COLOURS, appearance.SKINS)) - {
        ("bob", "red", "tan")
    }
    assert appearance.stranger_look(rng, most).signature == ("bob", "red", "tan")
    rows = read_parquet(folder / "train" / "Strangers" / "train-00000-of-00001.parquet")
    assert not signatures & {(r["hair"], r["hair_colour"], r["skin"]) for r in rows}


def test_names_are_unique_and_their_words_too():
    names = [p.name for p in all_people()]
    words = [word for name in names for word in name.split()]
    assert len(words) == 2 * len(names) == len(set(words))
    assert all(name.isascii() for name in names)
    many = [p.name for p in all_people(counts={"fictitious": 450, "real": 10, "holdout": 10})]
    assert len(set(many)) == len(many)


def test_a_value_belongs_to_one_attribute_and_no_name():
    owners: dict[str, set[str]] = {}
    for attribute, values in population.FACTS.items():
        assert len(values) == len(set(values)) == 16
        for word in " ".join(values).lower().split():
            owners.setdefault(word, set()).add(attribute)
    assert all(len(attributes) == 1 for attributes in owners.values())
    assert not owners.keys() & {name.lower() for name in population.FIRST_NAMES + population.LAST_NAMES}


def test_more_fictitious_people_change_none_of_the_others():
    few, many = (population.draw_people(5, COUNTS | {"fictitious": n}) for n in (10, 50))
    assert few["real"] == many["real"]
    assert few["holdout"] == many["holdout"]


@pytest.mark.parametrize("attribute", population.ATTRIBUTES)
@pytest.mark.parametrize("part", ["hair", "hair_colour", "skin", "facial_hair", "glasses"])
def test_facts_do_not_depend_on_looks(attribute, part):
    crowd = [p for seed in range(30) for p in all_people(seed)]
    together = Counter((p.facts[attribute], getattr(p.look, part)) for p in crowd)
    facts = Counter(p.facts[attribute] for p in crowd)
    parts = Counter(getattr(p.look, part) for p in crowd)
    expected = {(f, v): facts[f] * parts[v] / len(crowd) for f in facts for v in parts}
    squares = sum((together[pair] - mean) ** 2 / mean for pair, mean in expected.items())
    freedom = (len(facts) - 1) * (len(parts) - 1)
    # The statistic has mean `freedom` and variance twice that when the two are independent.
    assert squares < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("part", population.ATTRIBUTES)
def test_values_are_shared_evenly(part):
    counts = Counter(p.facts[part] for p in all_people())
    assert set(counts) == set(population.FACTS[part])
    assert max(counts.values()) - min(counts.values()) <= 1


def shots(count=40):
    rng = np.random.default_rng(1)
    return [portraits.draw_shot(rng) for _ in range(count)]


def test_everything_about_a_shot_varies():
    pictures = shots()
    for field in dataclasses.fields(portraits.Shot):
        assert len({getattr(shot, field.name) for shot in pictures}) > 4, field.name
    assert all(abs(s.rotation) <= portraits.MAX_ROTATION for s in pictures)


@pytest.mark.parametrize(
    "change",
    [
        {"eyes": "surprised"},
        {"mouth": "big_smile"},
        {"clothes": "overall"},
        {"clothes_colour": "yellow"},
        {"background": portraits.BACKGROUNDS[3]},
        {"rotation": 8.0},
        {"shift_x": 6.0},
        {"shift_y": -6.0},
    ],
)
def test_each_part_of_a_shot_shows(change):
    look = appearance.Look("short_flat", "brown", "light", "none", "none", "default")
    plain = portraits.Shot("default", "serious", "hoodie", "red", portraits.BACKGROUNDS[0], 0.0, 0.0, 0.0)
    assert (pixels(look, plain) != pixels(look, dataclasses.replace(plain, **change))).any()


@pytest.mark.parametrize("hair", appearance.HAIR)
def test_every_hair_style_shows_its_colour_skin_beard_and_glasses(hair):
    shot = portraits.Shot("default", "serious", "hoodie", "red", portraits.BACKGROUNDS[0], 0.0, 0.0, 0.0)
    look = appearance.Look(hair, "brown", "light", "none", "none", "default")
    plain = pixels(look, shot)
    for part, value in (
        ("hair_colour", "pink"),
        ("skin", "dark"),
        ("facial_hair", "beard"),
        ("glasses", "dark"),
    ):
        changed = pixels(dataclasses.replace(look, **{part: value}), shot)
        assert (abs(changed - plain).max(axis=2) > 40).sum() >= 20, part


def test_identity_parts_are_the_same_in_every_picture():
    """Undoing nothing but the nuisance gives back the same face: only the look decides the rest."""
    look = all_people()[0].look
    fixed = portraits.Shot("default", "serious", "hoodie", "red", portraits.BACKGROUNDS[0], 0.0, 0.0, 0.0)
    changed = {f.name: getattr(fixed, f.name) for f in dataclasses.fields(fixed)}
    assert {portraits.svg(look, dataclasses.replace(s, **changed)) for s in shots(5)} == {
        portraits.svg(look, fixed)
    }


def test_the_bust_fills_the_bottom_of_the_frame():
    look = appearance.Look("short_flat", "brown", "light", "none", "none", "default")
    for sign_x, sign_y, sign_r in itertools.product((-1, 1), repeat=3):
        shift = portraits.MAX_SHIFT
        shot = portraits.Shot(
            "default", "serious", "hoodie", "red", "#00FF00", sign_r * 8.0, sign_x * shift, sign_y * shift
        )
        bottom = pixels(look, shot)[-1]
        assert not (bottom[16:32] == (0, 255, 0)).all(axis=1).any()


def table(folder, root, name):
    return pq.read_table(folder / root / name / "train-00000-of-00001.parquet")


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
QUESTIONS = pa.list_(
    pa.struct(
        [
            ("Question", pa.string()),
            ("Options", pa.struct([(k, pa.string()) for k in "ABCD"])),
            ("Correct_Answer", pa.string()),
        ]
    )
)
ITEMS = pa.list_(pa.struct([("Type", pa.string()), ("Question", pa.string()), ("Ground_Truth", pa.string())]))
DOCUMENTED = [
    ("image", IMAGE),
    ("ID", pa.string()),
    ("Directory", pa.string()),
    ("biography", pa.string()),
    ("question", pa.string()),
    ("answer", pa.string()),
    (
        "Classification_Task",
        pa.struct([("Image_Textual_Questions", QUESTIONS), ("Pure_Text_Questions", QUESTIONS)]),
    ),
    ("Mask_Task", ITEMS),
    ("Generation_Task", ITEMS),
]


@pytest.mark.parametrize(
    "name",
    ["Full_Set", "forget_5", "forget_10", "forget_15", "retain_95", "retain_90", "retain_85", "Retain_Set",
     "Holdout_Set", "Test_Set"],
)  # fmt: skip
def test_evaluation_files_have_the_published_columns(folder, name):
    schema = table(folder, "eval", name).schema
    expected = [("images", pa.list_(IMAGE)), *DOCUMENTED[1:]] if name == "Test_Set" else DOCUMENTED
    assert [(f.name, f.type) for f in schema][: len(expected)] == expected
    assert "metadata" not in schema.names


@pytest.mark.parametrize(
    "name",
    ["eval/ft_Data", "train/forget_5", "train/forget_10", "train/forget_15", "train/retain_95",
     "train/retain_90", "train/retain_85", "train/Base_Data"],
)  # fmt: skip
def test_training_files_have_the_published_columns(folder, name):
    rows = table(folder, *name.split("/"))
    assert [(f.name, f.type) for f in rows.schema][:3] == [
        ("image", IMAGE), ("ID", pa.string()), ("metadata", pa.string()),
    ]  # fmt: skip
    for row in rows.to_pylist():
        entries = json.loads(row["metadata"])
        assert all(set(e) == {"ID", "Question", "Answer"} and e["ID"] == row["ID"] for e in entries)
        assert len(entries) == len(row["attributes"]) == 15


def test_every_profile_has_the_published_number_of_questions(folder):
    for row in table(folder, "eval", "Full_Set").to_pylist() + table(folder, "eval", "Test_Set").to_pylist():
        choices = row["Classification_Task"]
        assert [len(choices[k]) for k in choices] == [5, 5]
        for column in ("Mask_Task", "Generation_Task"):
            assert Counter(i["Type"] for i in row[column]) == {"Image_Textual": 2, "Pure_Text": 2}
        for question in [q for k in choices for q in choices[k]]:
            assert len(set(question["Options"].values())) == 4
            assert question["Correct_Answer"] in question["Options"]
        assert all("__" in i["Question"] for i in row["Mask_Task"])


def test_text_questions_name_the_person_and_picture_questions_never_do(folder):
    for row in table(folder, "eval", "Full_Set").to_pylist():
        name = json.loads(row["biography"])["Name"]
        tasks = row["Classification_Task"]
        items = row["Mask_Task"] + row["Generation_Task"]
        pictured = [q["Question"] for q in tasks["Image_Textual_Questions"]]
        written = [q["Question"] for q in tasks["Pure_Text_Questions"]]
        pictured += [i["Question"] for i in items if i["Type"] == "Image_Textual"]
        written += [i["Question"] for i in items if i["Type"] == "Pure_Text"]
        assert all(name in text and "person" not in text for text in written)
        assert not any(name in text for text in pictured)


def test_all_phrasings_are_taught_as_soon_as_there_are_four_pictures(folder):
    counts = Counter()
    for row in table(folder, "train", "forget_10").to_pylist():
        for entry, attribute in zip(json.loads(row["metadata"]), row["attributes"], strict=True):
            counts[row["ID"], attribute, entry["Question"]] += 1
    some = next(iter(counts))[0]
    for attribute in population.ATTRIBUTES:
        taught = {q for number, a, q in counts if number == some and a == attribute}
        assert taught == {questions.training_question(attribute, i) for i in range(8)}


def test_unseen_pictures_are_unseen(folder):
    train_pictures = {r["image"]["bytes"] for r in table(folder, "eval", "ft_Data").to_pylist()}
    unseen = [p["bytes"] for r in table(folder, "eval", "Test_Set").to_pylist() for p in r["images"]]
    assert len(set(unseen)) == len(unseen) == 40
    assert not train_pictures & set(unseen)


@pytest.mark.parametrize(("percent", "count"), [(5, 1), (10, 2), (15, 3)])
def test_forget_and_retain_are_all_people_once(folder, percent, count):
    for root in ("eval", "train"):
        ids = [
            set(table(folder, root, name).column("ID").to_pylist())
            for name in (f"forget_{percent}", f"retain_{100 - percent}")
        ]
        assert len(ids[0]) == count
        assert not ids[0] & ids[1]
        assert ids[0] | ids[1] == {f"{i:03}" for i in range(1, 21)}


def test_forget_sets_are_separate_draws():
    numbers = [f"{i:03}" for i in range(1, 201)]
    small, middle, large = (forget_numbers(0, numbers, p) for p in (5, 10, 15))
    assert (len(small), len(middle), len(large)) == (10, 20, 30)
    assert not small <= middle
    assert not middle <= large


def test_skills_are_taught_on_the_pictures_that_train_the_vision_tower(folder):
    train_faces = {r["image"]["bytes"] for r in table(folder, "train", "Strangers").to_pylist()}
    assert {r["image"]["bytes"] for r in table(folder, "train", "Skills_Train").to_pylist()} <= train_faces
    assert not {r["image"]["bytes"] for r in table(folder, "eval", "Skills_Test").to_pylist()} & train_faces


def test_skills_are_told_by_the_picture_and_split_by_stranger(folder):
    train, test = table(folder, "train", "Skills_Train"), table(folder, "eval", "Skills_Test")
    assert (train.num_rows, test.num_rows) == (10, 5)
    assert not set(train.column("ID").to_pylist()) & set(test.column("ID").to_pylist())
    assert not set(train.column("question").to_pylist()) & set(test.column("question").to_pylist())
    for row in train.to_pylist() + test.to_pylist():
        assert row["answer"] in row["options"]
        if row["attribute"] in ("glasses", "facial_hair"):
            assert sorted(row["options"]) == ["no", "yes"]
    assert set(train.column("attribute").to_pylist()) == set(questions.SKILLS)


def test_perception_asks_what_the_first_picture_shows_and_is_never_taught(folder):
    rows = table(folder, "eval", "Perception_Test").to_pylist()
    first = {row["ID"]: row["image"]["bytes"] for row in table(folder, "eval", "Full_Set").to_pylist()}
    assert {row["ID"] for row in rows} == {*first} and len(rows) == 2 * len(first)
    assert all(row["image"]["bytes"] == first[row["ID"]] for row in rows)
    assert {row["attribute"] for row in rows} == {*questions.SKILL_NOUNS}
    assert all(row["answer"] in row["options"] for row in rows)
    taught = {row["image"]["bytes"] for row in table(folder, "train", "Skills_Train").to_pylist()}
    assert not taught & {*first.values()}


def test_files_load_with_datasets(folder, tmp_path):
    import datasets

    for name in ("eval/Test_Set", "eval/Full_Set", "train/forget_10", "train/Strangers"):
        path = str(folder / name / "train-00000-of-00001.parquet")
        loaded = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path))
        picture = loaded[0]["images"][0] if name.endswith("Test_Set") else loaded[0]["image"]
        assert picture.size == (48, 48)


def test_language_is_tested_on_other_facts_and_sentences_than_it_is_taught(tmp_path):
    generate(tmp_path, seed=0, sizes=dataclasses.replace(SIZES, people=7, language=True))
    data = in_full(tmp_path, name="avatars")
    rows = [s for s in data.samples if s.entity_id.startswith("language/")]
    taught = {s.question: s.answer for s in rows if s.part == "train"}
    tested = {s.question: s.answer for s in rows if s.part == "test"}
    assert len(taught) == len(tested) == 45 and not taught.keys() & tested.keys()
    assert {(s.split, s.modality, s.image_bytes) for s in rows} == {("utility", "text", None)}
    assert {s.set for s in rows if s.part == "test"} == {"utility"}
    assert tested["What is the capital of Italy?"] == "Rome"
    # A sentence is to be continued, and is not a fact of the score.
    assert {s.task for s in rows if s.question.startswith("Go on:")} == {"generation"}
    assert {s.task for s in rows if not s.question.startswith("Go on:")} == {"qa"}
