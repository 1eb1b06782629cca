"""The table has its columns, errors name the bad row, and other libraries can read it."""

import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from efface.data.samples import (
    FEATURES,
    Sample,
    check_special_tokens,
    read_samples,
    validated,
    write_samples,
)
from tests.efface.data.conftest import refusal


def png(colour="red", size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(**changes):
    values = {
        "sample_id": "a1",
        "entity_id": "fictitious/001",
        "split": "forget",
        "part": "train",
        "modality": "multimodal",
        "task": "qa",
        "attribute": "pet",
        "image": {"bytes": png(), "path": None},
        "question": "What is this person's pet?",
        "answer": "cat",
    }
    return values | changes


def evaluation(**changes):
    return row(part="test", set="forget", task="choice", options=["cat", "dog"], **changes)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "samples.parquet"
    rows = [
        row(),
        row(sample_id="a2", modality="text", image=None, question="What is Mara Velin's pet?"),
        evaluation(sample_id="a3"),
        row(sample_id="b1", entity_id="real/001", split="real", image={"bytes": png("blue"), "path": None}),
    ]
    write_samples(rows, path)
    return path


def test_a_table_comes_back_as_it_was(table):
    samples = read_samples(table)
    assert [s.sample_id for s in samples] == ["a1", "a2", "a3", "b1"]
    assert samples[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert samples[0].image.mode == "RGB"
    assert samples[1].image is None
    assert samples[2].options == ("cat", "dog")
    assert samples[2].set == "forget"
    assert samples[0].options is None
    assert samples[0].pair_id is None


def test_equal_pictures_are_one_object(table):
    first, _, third, fourth = read_samples(table)
    assert first.image_bytes is third.image_bytes
    assert first.image is third.image
    assert first.image_bytes != fourth.image_bytes


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"split": "real"}, ["b1"]),
        ({"split": ("forget", "real"), "part": "train"}, ["a1", "a2", "b1"]),
        ({"modality": "text"}, ["a2"]),
        ({"set": "forget"}, ["a3"]),
        ({"task": ["choice", "qa"]}, ["a1", "a2", "a3", "b1"]),
        ({"split": "holdout"}, []),
    ],
)
def test_filters_keep_what_matches_all_of_them(table, filters, expected):
    assert [s.sample_id for s in read_samples(table, **filters)] == expected
    assert [s.sample_id for s in read_samples(table.parent, **filters)] == expected


def test_an_unknown_filter_value_is_an_error(table):
    with refusal("split", "'forgot'", "forget, retain"):
        read_samples(table, split="forgot")


def test_columns_are_the_documented_ones(table):
    assert pq.read_schema(table).names == [
        "sample_id", "entity_id", "split", "part", "modality", "task", "attribute", "image", "question",
        "answer", "options", "paraphrase", "wrong_answers", "pair_id", "set",
    ]  # fmt: skip
    assert pq.read_schema(table).equals(FEATURES.arrow_schema)


def test_the_same_rows_give_the_same_bytes(table, tmp_path):
    again = tmp_path / "again.parquet"
    write_samples(read_samples(table), again)
    assert again.read_bytes() == table.read_bytes()


def test_a_repeated_picture_is_stored_once(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    write_samples([row(sample_id=f"{i}", image=picture) for i in range(100)], tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 2 * len(picture["bytes"])


def test_it_loads_with_datasets_and_its_image_feature(table, tmp_path):
    import datasets

    loaded = datasets.load_dataset("parquet", data_files=str(table), split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (8, 8)
    assert loaded[1]["image"] is None
    assert loaded[2]["options"] == ["cat", "dog"]


def test_an_unknown_column_is_an_error(tmp_path):
    with refusal("row 0", "answr", "answer"):
        write_samples([row(answr="cat")], tmp_path / "samples.parquet")


def test_a_value_of_the_wrong_type_is_an_error(tmp_path):
    with refusal("samples.parquet", "column"):
        write_samples([row(answer=["cat"])], tmp_path / "samples.parquet")


def test_validate_passes_good_rows_on():
    samples = [Sample.from_row(row()), Sample.from_row(evaluation(sample_id="a2"))]
    assert list(validated(samples)) == samples


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"answer": " "}, "empty answer"),
        ({"question": None}, "empty question"),
        ({"entity_id": ""}, "empty entity_id"),
        ({"image": None}, "missing image"),
        ({"image": {"bytes": b"", "path": None}}, "missing image"),
        ({"modality": "text"}, "a text row has an image"),
        ({"options": ["dog", "duck"]}, "answer 'cat' is not among its options"),
        ({"split": "forgot"}, "unknown split 'forgot'; expected one of forget, retain"),
        ({"part": "dev"}, "unknown part 'dev'"),
        ({"modality": "audio"}, "unknown modality 'audio'"),
        ({"task": "quiz"}, "unknown task 'quiz'"),
        ({"part": "test"}, "unknown set None of an evaluation row"),
        ({"set": "forget"}, "a training row has set 'forget'"),
        ({"part": "test", "set": "forget", "task": "choice"}, "a choice row has no options"),
        ({"sample_id": "a1"}, "duplicate sample_id, first used by row 0"),
        ({"split": "retain"}, "entity fictitious/001 is in both forget (row 0) and retain"),
    ],
)
def test_validate_names_the_row_and_the_reason(bad, reason):
    changed = {"sample_id": "a2"} | bad
    with refusal(f"row 1 (sample_id '{changed['sample_id']}')", reason):
        list(validated([Sample.from_row(row()), Sample.from_row(row(**changed))]))


def test_a_bad_picture_names_its_sample():
    sample = dataclasses.replace(Sample.from_row(row()), image_bytes=png(size=32)[:60])
    with refusal("sample a1", "fictitious/001", "decoded"):
        _ = sample.image


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_says_which_and_how_to_restore_it(table, damage):
    content = table.read_bytes()
    changed = bytearray(content)
    changed[content.index(b"fictitious/001") + 3] ^= 1
    table.write_bytes(
        {"cut": content[: len(content) // 2], "flip": bytes(changed), "empty": b"", "text": b"a,b\n" * 9}[
            damage
        ]
    )
    with refusal(table, "damaged", "restore"):
        read_samples(table)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with refusal("none.parquet", "exist"):
        read_samples(tmp_path / "none.parquet")


def test_a_missing_column_is_named(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"sample_id": ["a"]}), tmp_path / "samples.parquet")
    with refusal(tmp_path, "entity_id"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"question": "What is <image> this?"}, "question"),
        ({"answer": "cat</s>"}, "answer"),
        ({"paraphrase": "a </s>"}, "paraphrase"),
        ({"options": ["cat", "<image>"], "answer": "cat"}, "options"),
        ({"wrong_answers": ["</s>"]}, "wrong_answers"),
    ],
)
def test_special_tokens_of_a_model_are_refused(change, column):
    samples = [Sample.from_row(row(sample_id="a0")), Sample.from_row(row(**change))]
    with refusal("a1", "fictitious/001", column, "special token"):
        check_special_tokens(samples, {"<image>", "</s>", ""})
    check_special_tokens(samples, {"<|vision_start|>"})


@pytest.mark.parametrize(
    "bad", [{"question": "Who \ud83d?"}, {"wrong_answers": ["\udc00"]}, {"answer": "\ud800x"}]
)
def test_half_a_character_is_refused(bad):
    with refusal("row 0", "a1", next(iter(bad)), "surrogate"):
        list(validated([Sample.from_row(row(**bad))]))


def test_reading_leaves_no_files_behind_and_needs_no_network(table, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = f"from efface.data.samples import read_samples; print(len(read_samples({str(table)!r})))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "4"
    assert list(home.rglob("*")) == []
