"""A user's table becomes samples: csv, jsonl, parquet; who is forgotten; unusable rows."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from efface.data.benchmarks import table_importer
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.benchmarks.table_importer import read_benchmark
from efface.data.samples import validated
from tests.efface.conftest import picture
from tests.efface.data.conftest import refusal

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
    elif kind == "folder of pictures":
        file = root / "data" / "metadata.csv"
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, ["file_name", "question", "answer", "person", "part"])
            writer.writeheader()
            writer.writerows({"file_name": row.pop("image"), **row} for row in rows)
    elif kind == "saved to disk":
        features = {key: Value("string") for key in ("question", "answer", "person", "part")}
        features["image"] = Image()
        rows = [{key: row.get(key) for key in features} for row in rows]
        for row in rows:
            row["image"] = row["image"] and {"bytes": (root / "data" / row["image"]).read_bytes()}
        file = root / "data" / "saved"
        Dataset.from_list(rows, features=Features(features)).save_to_disk(file, num_shards=2)
    else:
        keys = ("image", "question", "answer", "person", "part")
        if kind == "parquet of paths":  # pictures that `datasets` opened from files
            rows = [
                row | {"image": row.get("image") and {"bytes": None, "path": row["image"]}} for row in rows
            ]
            file = file.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), file)
    return file


def read(root, fraction=0.2, policy="stop", seed=0):
    bad_rows = BadRows(policy)
    data = read_benchmark(root, name="vqa", forget=ForgetSelection(fraction, seed), bad_rows=bad_rows)
    return data, list(data.samples), bad_rows


KINDS = ["csv", "jsonl", "parquet", "parquet of paths", "folder of pictures", "saved to disk"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_samples(root, kind):
    write(root, facts(), kind)
    data, samples, _ = read(root)
    list(validated(samples))
    assert {s: len(ids) for s, ids in data.entities.items() if ids} == {"forget": 1, "retain": 4}
    assert {(s.part, s.modality, s.task) for s in samples} == {
        ("train", "multimodal", "qa"), ("train", "text", "qa"), ("train", "multimodal", "name"),
        ("test", "multimodal", "qa"), ("test", "text", "qa"),
    }  # fmt: skip
    assert len(samples) == 5 * 3 + 5 * 2 + 2  # the row in text, without a part, is both taught and questions
    pair = [s for s in samples if s.pair_id == samples[0].pair_id]
    assert [s.question for s in pair] == ["What is this person's pet?", "What is Ada Stone's pet?"]
    assert pair[1].image_bytes is None
    assert pair[0].image_bytes == picture(0)
    assert samples == read(root)[1]  # ids too


def test_the_people_to_forget_are_drawn_from_the_seed(root):
    write(root, facts(), "csv")
    draws = [read(root, fraction=0.4, seed=seed)[0].entities["forget"] for seed in range(6)]
    assert draws[0] == read(root, fraction=0.4, seed=0)[0].entities["forget"]
    assert len({tuple(people) for people in draws}) > 1
    assert {len(people) for people in draws} == {2}


def test_without_parts_the_facts_themselves_are_asked(root):
    write(root, [row | {"part": None} for row in facts()], "jsonl")
    _, samples, _ = read(root)
    train, test = (
        [(s.modality, s.question, s.answer) for s in samples if (s.part == "train") is train]
        for train in (True, False)
    )
    assert train == test
    assert {s.set for s in samples if s.part == "test"} == {"forget", "retain"}


def test_a_number_is_not_a_name_but_a_name_column_gives_one(root):
    rows = [row | {"person": "042"} for row in list(facts())[:1]] + list(facts())[3:]
    write(root, rows, "jsonl")
    data, samples, _ = read(root)
    assert "person/042" not in data.names
    assert [s.modality for s in samples if s.entity_id == "person/042"] == ["multimodal"]
    rows[0]["name"] = "Mara Velin"
    write(root, rows, "jsonl")
    _, samples, _ = read(root)
    questions = [s.question for s in samples if s.entity_id == "person/042"]
    assert questions == ["What is this person's pet?", "What is Mara Velin's pet?"]


BAD = [
    ({"person": ""}, ["person"]),
    ({"answer": " "}, ["answer"]),
    ({"question": None}, ["question"]),
    ({"part": "dev"}, ["part", "'dev'", "train or test"]),
    ({"image": "../secret.png"}, ["../secret.png", "outside"]),
    ({"image": "pictures/../../secret.png"}, ["pictures/../../secret.png", "outside"]),
    ({"image": "/etc/hostname"}, ["/etc/hostname", "outside"]),
    ({"image": "pictures/9.png"}, ["pictures/9.png", "exist"]),
    ({"image": "iVBORw0KGgo" * 100}, ["iVBORw0KGgo", "exist"]),
    ({"image": "a\x00.png"}, ["exist"]),
    ({"image": "broken.png"}, ["person Ben Field", "decoded"]),
    ({"options": ["cat", "dog"]}, ["options", "cat"]),
    ({"options": "5"}, ["options", "list"]),
    ({"options": [1, 2]}, ["options", "[1, 2]"]),
    ({"wrong_answers": "cat"}, ["wrong_answers", "'cat'"]),
    ({"person": float("nan")}, ["person", "nan", "float"]),
    ({"person": True}, ["person", "True"]),
    ({"answer": ["Oslo", "Lyon"]}, ["answer", "Oslo", "list"]),
    ({"answer": {"text": "Oslo"}}, ["answer", "dict"]),
    ({"answer": 1.5}, ["answer", "1.5", "float"]),
    ({"answer": "Os\ud83dlo"}, ["answer", "surrogate"]),
    ({"person": "Ben\udc80"}, ["person", "surrogate"]),
    ({"question": "Wh\0ere?"}, ["question", r"'\x00'"]),
    ({"answer": "Oslo\x1b[31m"}, ["answer", r"'\x1b'"]),
    ({"person": "Ben\x08 Field"}, ["person", r"'\x08'"]),
    ({"person": "nan"}, ["person", "'nan'", "missing value"]),
    ({"person": "<NA>"}, ["person", "'<NA>'", "missing value"]),
    ({"name": "None"}, ["name", "'None'", "missing value"]),
    ({"image": float("nan")}, ["image", "nan", "float"]),
    ({"image": ["pictures/1.png"]}, ["image", "list"]),
    ({"image": 7}, ["image", "7", "int"]),
    ({"image": {"bytes": None, "path": "../secret.png"}}, ["../secret.png", "outside"]),
    ({"image": {"bytes": None, "path": None}}, ["person Ben Field", "missing"]),
    ({"image": "pictures\\1.png"}, ["exist"]),
    ({"image": "https://example.org/1.png"}, ["exist"]),
    ({"image": "empty.png"}, ["person Ben Field", "0 bytes"]),
    ({"image": "page.png"}, ["person Ben Field", "decoded"]),  # what a failed download leaves
    ({"image": None}, ["this person", "no picture"]),
    ({"name": "Otto"}, ["Ben Field", "'Otto'"]),
    ({"image": None, "question": "<image>\nWhere does Ada Stone live?"}, ["<image>", "no picture"]),
]


@pytest.mark.parametrize(("change", "values"), BAD)
def test_a_bad_row_stops_or_is_left_out(root, change, values):
    (root / "data" / "broken.png").write_bytes(picture(0)[:-30])
    (root / "data" / "empty.png").touch()
    (root / "data" / "page.png").write_text("<!DOCTYPE html><html>Not found</html>")
    rows = list(facts())
    rows[4] |= change
    write(root, rows, "jsonl")
    with refusal("people.jsonl", "row 5", *values, "on_bad_row: skip"):
        read(root)
    _, samples, bad_rows = read(root, policy="skip")
    assert [entry["row"].split(",")[0] for entry in bad_rows.left_out] == ["row 5"]
    rows.pop(4)
    write(root, rows, "jsonl")
    assert [(s.question, s.answer) for s in samples] == [(s.question, s.answer) for s in read(root)[1]]


HEADER = "image,question,answer,person,part\n"
GOOD = ",Where does Ada Stone live?,Oslo,Ada Stone,\n,Where does Bo Dahl live?,Lyon,Bo Dahl,\n"
BAD_CELLS = [
    (",Where, does she live?,Oslo,Ada Stone,\n", ["6 cells", "5 columns"]),  # an unquoted comma
    (",Where does she live?,Oslo,Ada Stone,,,\n", ["7 cells"]),
    (",Where does she live?,Oslo,Ada Stone\n", ["4 cells"]),
    ("Ada Stone\n", ["1 cells"]),
]


@pytest.mark.parametrize(("line", "values"), BAD_CELLS)
@pytest.mark.parametrize("first", [True, False])
def test_a_csv_row_that_does_not_fit_its_columns_stops_or_is_left_out(root, line, values, first):
    text = HEADER + (line + GOOD if first else GOOD + line)
    (root / "data" / "people.csv").write_text(text)
    with refusal("people.csv", "row 1" if first else "row 3", *values, "quotes", "on_bad_row: skip"):
        read(root)
    data, _, bad_rows = read(root, policy="skip")
    assert len(bad_rows.left_out) == 1
    people = [person for ids in data.entities.values() for person in ids]
    assert sorted(people) == ["person/Ada Stone", "person/Bo Dahl"]


UNREADABLE = {
    "only a header": ("people.csv", HEADER.encode(), ["no readable row"]),
    "empty": ("people.csv", b"", ["no readable row"]),
    "cp1252": (
        "people.csv",
        (HEADER + GOOD).replace("Bo", "Zoë").encode("cp1252"),
        ["line 3", "0xeb", "UTF-8"],
    ),
    "cp1252, jsonl": ("people.jsonl", '{"person": "Zoë"}\n'.encode("cp1252"), ["line 1", "0xeb", "UTF-8"]),
    "utf-16": ("people.csv", (HEADER + GOOD).encode("utf-16"), ["line 1", "UTF-8"]),
    "semicolons": ("people.csv", (HEADER + GOOD).replace(",", ";").encode(), ["question;answer", "commas"]),
    "open quote": ("people.csv", (HEADER + GOOD + ',"Where').encode(), ["line 4", "csv"]),
    "column twice": ("people.csv", (HEADER.replace("part", "answer") + GOOD).encode(), ["answer", "twice"]),
    "nothing but bad lines": ("people.jsonl", b"[1]\n{\n", ["no readable row"]),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_table_that_cannot_be_read_names_file_and_line(root, case):
    name, content, values = UNREADABLE[case]
    (root / "data" / name).write_bytes(content)
    with refusal(name, *values):
        read(root, policy="skip")
    with refusal(name, *values):
        table_importer.files_to_import("data", root / "data")


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("{", ["JSON"]),
        ("[1]", ["[1]", "object"]),
        ("7", ["object"]),
        ('{"person": "Ada Stone", "person": "Bo Dahl"}', ["person", "duplicate"]),
    ],
)
def test_a_line_that_is_not_a_json_object_stops_or_is_left_out(root, line, values):
    file = write(root, facts(), "jsonl")
    whole = read(root)[1]
    file.write_text(file.read_text() + line + "\n")
    with refusal("people.jsonl", "row 17", *values, "on_bad_row: skip"):
        read(root)
    assert read(root, policy="skip")[1] == whole


MISSPELT = [
    ("image", "Image"),
    ("image", "images"),
    ("image", "ima\u200bge"),  # a zero-width space
    ("part", "PART"),
    ("part", " parts "),
    ("person", "Person"),
    ("answer", "\u0430nswer"),  # a Cyrillic a
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("column", "spelt"), MISSPELT)
def test_a_column_spelt_otherwise_is_not_passed_over(root, kind, column, spelt):
    """A picture or a part that is not read would make another benchmark of the table."""
    rows = [{spelt if key == column else key: value for key, value in row.items()} for row in facts()]
    file = root / "data" / f"people.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="", encoding="utf-8-sig") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    written = spelt.strip() if kind == "csv" else spelt
    with refusal(f"people.{kind}", f"{written!a} for {column}"):
        read(root)
    with refusal(f"people.{kind}", f"{written!a} for {column}"):
        table_importer.files_to_import("data", root / "data")


def test_further_columns_are_passed_over(root):
    write(root, facts(), "jsonl")
    whole = read(root)[1]
    write(root, [row | {"id": 7, "filename": "x", "source": "web"} for row in facts()], "jsonl")
    assert read(root)[1] == whole


@pytest.mark.parametrize("name", ["PEOPLE.CSV", "people.Csv"])
def test_the_case_of_a_tables_ending_does_not_matter(root, name):
    file = write(root, facts(), "csv")
    whole = read(root)[1]
    file.rename(file.with_name(name))
    assert read(root)[1] == whole
    assert len(table_importer.files_to_import("data", root / "data")) == 6


def test_spaces_around_a_path_and_an_empty_path_mean_what_they_seem_to(root):
    plain = list(facts())
    for kind in ("csv", "jsonl", "parquet"):
        file = write(root, plain, kind)
        whole = read(root)[1]
        write(root, [r | {"image": f" {r['image']} " if r["image"] else " "} for r in plain], kind)
        assert read(root)[1] == whole
        file.unlink()


def test_columns_are_those_of_all_lines(root):
    rows = list(facts())
    del rows[0]["answer"]
    write(root, rows, "jsonl")
    with refusal("people.jsonl", "row 1", "answer"):
        read(root)
    table_importer.files_to_import("data", root / "data")


def test_a_long_field_is_read(root):
    rows = [*facts(), {"question": "x" * 200_000 + " Ada Stone?", "answer": "Oslo", "person": "Ada Stone"}]
    for kind in ("csv", "jsonl"):
        file = write(root, rows, kind)
        assert max(len(sample.question) for sample in read(root)[1]) > 200_000
        file.unlink()


@pytest.mark.parametrize(
    "question", ["Ada Stone is from Oslo. What is this person's pet?", "ADA  STONE: this person?"]
)
def test_a_question_about_this_person_may_say_who_that_is(root, question):
    write(root, [*facts(), {"question": question, "answer": "a cat", "person": "Ada Stone"}], "csv")
    assert question in [s.question for s in read(root)[1]]


def test_a_table_of_text_alone_may_ask_about_this_person(root):
    rows = [{"question": "Where does this person live?", "answer": "Oslo", "person": p} for p in PEOPLE]
    write(root, rows, "csv")
    assert {s.modality for s in read(root)[1]} == {"text"}


def test_placeholders_of_the_picture_are_taken_off(root):
    plain = list(facts())
    write(root, plain, "jsonl")
    whole = read(root)[1]
    for form in ("<image>\n{}", " <image> {}", "<image><image>\n{}", "{}\n<image>"):
        rows = [r | {"question": form.format(r["question"])} if r["image"] else r for r in plain]
        write(root, rows, "jsonl")
        assert read(root)[1] == whole


def test_linked_pictures_are_read(root, tmp_path):
    """As a snapshot of the Hub and a cache of links have them."""
    file = write(root, facts(), "csv")
    whole = read(root)[1]
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, path in enumerate([file, *(root / "data" / "pictures").iterdir()]):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))
    assert read(root)[1] == whole
    assert len(table_importer.files_to_import("data", root / "data")) == 6
    (root / "data" / "pictures").rename(tmp_path / "elsewhere")
    (root / "data" / "pictures").symlink_to(tmp_path / "elsewhere")
    assert read(root)[1] == whole
    assert len(table_importer.files_to_import("data", root / "data")) == 6


def test_a_path_through_a_link_stays_in_the_folder(root, tmp_path):
    """`link/../secret.png` is a file beside the link, not beside what it points to."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "secret.png").write_bytes(picture(1))
    (root / "data" / "link").symlink_to(tmp_path / "far" / "away")
    rows = [*facts(), {"image": "link/../secret.png", "question": "?", "answer": "x", "person": "Ada Stone"}]
    write(root, rows, "jsonl")
    with refusal("row 17", "link/../secret.png", "exist"):
        read(root)


def test_import_takes_the_table_and_the_pictures_it_names(root):
    table = write(root, facts(), "csv")
    (root / "data" / "pictures" / "unnamed.png").write_bytes(picture(7))
    for source in (table, root / "data"):
        files = table_importer.files_to_import("data", source)
        assert [f.relative_to(root / "data").as_posix() for f in files] == [
            "people.csv",
            *(f"pictures/{i}.png" for i in range(5)),
        ]


def test_a_folder_without_a_single_table_is_refused(root):
    with refusal(root / "data", "none", "question, answer, person"):
        table_importer.files_to_import("data", root / "data")
    write(root, facts(), "csv")
    (root / "data" / "more.jsonl").write_text('{"image": null}\n')
    with refusal("more.jsonl, people.csv"):
        table_importer.files_to_import("data", root / "data")
    with refusal("more.jsonl", "question, answer, person"):
        table_importer.files_to_import("data", root / "data" / "more.jsonl")
    (root / "data" / "more.jsonl").write_text('{"image": null\n')
    with refusal("more.jsonl", "no readable row"):
        table_importer.files_to_import("data", root / "data" / "more.jsonl")
