"""A table of one's own becomes samples: csv, jsonl, parquet; who is forgotten; rows that cannot be used."""

import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efface.data.benchmarks import vqa_files
from efface.data.benchmarks.reading import BadRows, Forgetting
from efface.data.benchmarks.vqa import read_benchmark
from efface.data.samples import validate
from efface.errors import DataError
from tests.efface.conftest import picture

PEOPLE = ["Ada Stone", "Ben Field", "Cleo Marsh", "Dan Brook", "Eve Hill"]


def facts():
    for i, person in enumerate(PEOPLE):
        common = {"image": f"pictures/{i}.png", "person": person}
        yield common | {"question": "What is this person's pet?", "answer": f"pet {i}", "part": "train"}
        yield common | {"question": "Who is this person?", "answer": person, "part": "train"}
        yield common | {
            "question": "Which animal does this person keep?",
            "answer": f"pet {i}",
            "part": "test",
        }
    yield {"image": None, "question": "Where does Ada Stone live?", "answer": "Oslo", "person": "Ada Stone"}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    for i in range(len(PEOPLE)):
        (folder / "pictures" / f"{i}.png").write_bytes(picture(i))
    return tmp_path


def write(root, rows, kind):
    file = root / "data" / f"people.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, ["image", "question", "answer", "person", "part"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        keys = ("image", "question", "answer", "person", "part")
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), file)
    return file


def read(root, fraction=0.2, people=None, policy="stop", seed=0):
    bad_rows = BadRows(policy)
    found = read_benchmark(root, name="vqa", forget=Forgetting(fraction, people, seed), bad_rows=bad_rows)
    return found, list(found.samples), bad_rows


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_samples(root, kind):
    write(root, facts(), kind)
    found, samples, _ = read(root)
    validate(samples)
    assert {s: len(ids) for s, ids in found.entities.items() if ids} == {"forget": 1, "retain": 4}
    assert {(s.part, s.modality, s.task) for s in samples} == {
        ("train", "multimodal", "qa"), ("train", "text", "qa"), ("train", "multimodal", "name"),
        ("test", "multimodal", "qa"), ("test", "text", "qa"),
    }  # fmt: skip
    assert len(samples) == 5 * 3 + 5 * 2 + 2  # the row in text, without a part, is both taught and asked
    pair = [s for s in samples if s.pair_id == samples[0].pair_id]
    assert [s.question for s in pair] == ["What is this person's pet?", "What is Ada Stone's pet?"]
    assert pair[1].image_bytes is None
    assert pair[0].image_bytes == picture(0)
    assert samples == read(root)[1]  # ids too


def test_the_people_to_forget_are_given_or_drawn_from_the_seed(root):
    write(root, facts(), "csv")
    assert read(root, people=("Eve Hill", "Ben Field"))[0].entities["forget"] == [
        "person/Ben Field",
        "person/Eve Hill",
    ]
    drawn = [read(root, fraction=0.4, seed=seed)[0].entities["forget"] for seed in range(6)]
    assert drawn[0] == read(root, fraction=0.4, seed=0)[0].entities["forget"]
    assert len({tuple(people) for people in drawn}) > 1
    assert {len(people) for people in drawn} == {2}
    with pytest.raises(DataError, match=r"people\.csv: nobody is called Zoe .*prepare\.forget_people"):
        read(root, people=("Zoe",))


def test_without_parts_the_facts_themselves_are_asked(root):
    write(root, [row | {"part": None} for row in facts()], "jsonl")
    _, samples, _ = read(root)
    taught, asked = (
        [(s.modality, s.question, s.answer) for s in samples if (s.part == "train") is train]
        for train in (True, False)
    )
    assert taught == asked
    assert {s.set for s in samples if s.part == "test"} == {"forget", "retain"}


def test_a_number_is_no_name_and_a_name_column_gives_one(root):
    rows = [row | {"person": "042"} for row in list(facts())[:1]] + list(facts())[3:]
    write(root, rows, "jsonl")
    found, samples, _ = read(root)
    assert "person/042" not in found.names
    assert [s.modality for s in samples if s.entity_id == "person/042"] == ["multimodal"]
    rows[0]["name"] = "Mara Velin"
    write(root, rows, "jsonl")
    _, samples, _ = read(root)
    asked = [s.question for s in samples if s.entity_id == "person/042"]
    assert asked == ["What is this person's pet?", "What is Mara Velin's pet?"]


BAD = [
    ({"person": ""}, "no person"),
    ({"answer": " "}, "empty answer"),
    ({"question": None}, "empty question"),
    ({"part": "dev"}, "part is 'dev'; expected train or test"),
    ({"image": "../secret.png"}, "lies outside the folder"),
    ({"image": "pictures/9.png"}, "does not exist"),
    ({"image": "broken.png"}, "cannot be decoded"),
    ({"options": ["cat", "dog"]}, "is none of the options"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_stops_or_is_left_out(root, change, reason):
    (root / "data" / "broken.png").write_bytes(picture(0)[:-30])
    rows = list(facts())
    rows[4] |= change
    write(root, rows, "jsonl")
    with pytest.raises(DataError, match=rf"people\.jsonl: row 5.*{re.escape(reason)}.*on_bad_row: skip"):
        read(root)
    _, samples, bad_rows = read(root, policy="skip")
    assert [note["row"].split(",")[0] for note in bad_rows.left_out] == ["row 5"]
    rows.pop(4)
    write(root, rows, "jsonl")
    assert [(s.question, s.answer) for s in samples] == [(s.question, s.answer) for s in read(root)[1]]


def test_import_takes_the_table_and_the_pictures_it_names(root):
    table = write(root, facts(), "csv")
    (root / "data" / "pictures" / "unnamed.png").write_bytes(picture(7))
    for given in (table, root / "data"):
        files = vqa_files.files_to_import("data", given)
        assert [f.relative_to(root / "data").as_posix() for f in files] == [
            "people.csv",
            *(f"pictures/{i}.png" for i in range(5)),
        ]


def test_a_table_that_is_none_is_named(root):
    with pytest.raises(DataError, match=r"no single table \(found none\).*benchmark\.roots\.data"):
        vqa_files.files_to_import("data", root / "data")
    write(root, facts(), "csv")
    (root / "data" / "more.jsonl").write_text('{"image": null}\n')
    with pytest.raises(DataError, match=r"no single table \(found more\.jsonl, people\.csv\)"):
        vqa_files.files_to_import("data", root / "data")
    with pytest.raises(DataError, match=r"more\.jsonl lacks the columns question, answer, person"):
        vqa_files.files_to_import("data", root / "data" / "more.jsonl")
    (root / "data" / "more.jsonl").write_text('{"image": null\n')
    with pytest.raises(DataError, match=r"more\.jsonl: line 1 is not JSON"):
        vqa_files.files_to_import("data", root / "data" / "more.jsonl")
