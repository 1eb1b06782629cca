"""CLEAR's files become samples: every quirk, every bad row, and no evaluation question is taught."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efface.data.benchmarks import clear_importer
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.samples import validated
from tests.efface.data.clear_fixture import FORGET, RETAIN, write_clear
from tests.efface.data.conftest import refusal

FILE = "train-00000-of-00001.parquet"


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return write_clear(tmp_path_factory.mktemp("clear") / "data")


@pytest.fixture
def root(original, tmp_path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(original, tmp_path / "data"))


def read(root: Path, fraction: float = 0.1, policy="stop"):
    bad = BadRows(policy)
    data = clear_importer.read_benchmark(
        root.parent, name="clear", forget=ForgetSelection(fraction), bad_rows=bad
    )
    return data, list(data.samples), bad.left_out


@pytest.fixture(scope="session")
def whole(original):
    return read(original)


def change(root: Path, configuration: str, edit, file: str = FILE):
    path = root / configuration / file
    table = pq.read_table(path)
    rows = edit(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def counts(samples, **where):
    selected = [s for s in samples if all(getattr(s, key) == value for key, value in where.items())]
    return Counter((s.split, s.task, s.modality) for s in selected)


def test_the_table_keeps_to_the_data_model_and_every_picture_decodes(whole):
    _, samples, left_out = whole
    assert len(list(validated(samples))) == len(samples) and left_out == []
    assert len({s.sample_id for s in samples}) == len(samples)


def test_training_rows_are_captions_and_texts(whole):
    _, samples, _ = whole
    assert counts(samples, part="train") == {
        ("forget", "caption", "multimodal"): 8, ("forget", "qa", "text"): 80,
        ("retain", "caption", "multimodal"): 12, ("retain", "qa", "text"): 120,
    }  # fmt: skip


def test_evaluation_rows(whole):
    _, samples, _ = whole
    assert counts(samples, part="test") == {
        ("forget", "caption", "multimodal"): 8, ("forget", "name", "multimodal"): 7,
        ("forget", "choice", "multimodal"): 7, ("forget", "generation", "text"): 80,
        ("retain", "caption", "multimodal"): 4, ("retain", "name", "multimodal"): 4,
        ("retain", "choice", "multimodal"): 4, ("retain", "generation", "text"): 40,
        ("real", "name", "multimodal"): 4, ("real", "choice", "multimodal"): 4,
        ("utility", "qa", "multimodal"): 3, ("utility", "choice", "multimodal"): 3,
    }  # fmt: skip
    assert all(s.set == s.split for s in samples if s.part == "test")


@pytest.mark.parametrize(("fraction", "forget"), [(0.01, 1), (0.05, 2), (0.1, 4)])
def test_every_share_has_its_people(original, fraction, forget):
    data, samples, _ = read(original, fraction)
    assert data.entities["forget"] == sorted(f"fictitious/{p}" for p in [*RETAIN, *FORGET][-forget:])
    assert len(data.entities["retain"]) == 10 - forget
    assert len(data.entities["real"]) == 3 and len(data.entities["utility"]) == 3
    assert data.entities["holdout"] == []
    for split, people in data.entities.items():
        assert {s.entity_id for s in samples if s.split == split} == set(people)
    assert data.names["fictitious/Zoë Al-Marek"] == "Zoë Al-Marek"


def test_texts_belong_to_the_author_of_their_block(whole):
    _, samples, _ = whole
    for sample in samples:
        if sample.modality == "text":
            named = [p for p in [*RETAIN, *FORGET] if p in f"{sample.question} {sample.answer}"]
            assert named in ([], [sample.entity_id.removeprefix("fictitious/")])
    per_author = Counter(s.entity_id for s in samples if s.part == "train" and s.modality == "text")
    assert set(per_author.values()) == {20}


def test_the_row_that_forget10_perturbed_lacks_is_asked_without_a_paraphrase(whole):
    _, samples, _ = whole
    captions = [s for s in samples if s.set == "forget" and s.task == "caption"]
    (bare,) = [s for s in captions if s.paraphrase is None]
    assert bare.wrong_answers is None
    assert all(s.paraphrase and len(s.wrong_answers) in (4, 5) for s in captions if s is not bare)
    taught = {s.answer for s in samples if s.part == "train" and s.split == "forget" and s.task == "caption"}
    assert {s.answer for s in captions} == taught


def test_names_are_asked_freely_and_with_six_options(whole):
    _, samples, _ = whole
    names = [s for s in samples if s.task == "name"]
    assert {s.question for s in names} == {"The name of the person on the image is "}
    assert all(s.paraphrase == s.answer and s.answer not in s.wrong_answers for s in names)
    choices = [s for s in samples if s.task == "choice" and s.set in ("forget", "retain", "real")]
    assert {s.question for s in choices} == {"What is the name of the person in the image?"}
    assert {len(s.options) for s in choices if s.set == "forget"} == {6}
    assert {len(s.options) for s in choices if s.set == "retain"} == {5, 6}  # ragged
    assert len({s.options.index(s.answer) for s in choices}) > 2


def test_reading_again_gives_the_same(original, whole):
    assert read(original)[1] == whole[1]


def test_a_pair_is_a_picture_and_a_question_of_one_author(whole):
    _, samples, _ = whole
    pairs: dict[str, list] = {}
    for sample in samples:
        if sample.pair_id:
            assert sample.part == "train"
            pairs.setdefault(sample.pair_id, []).append(sample)
    assert len(pairs) == 20  # as many as there are pictures to train on
    for pictured, written in (sorted(pair, key=lambda s: s.modality) for pair in pairs.values()):
        assert (pictured.modality, written.modality) == ("multimodal", "text")
        assert pictured.entity_id == written.entity_id


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


def test_evaluation_questions_are_not_taught_except_in_text(original, whole):
    _, samples, _ = whole
    assert {s.part for s in samples} == {"train", "test"}
    taught = [s for s in samples if s.part == "train"]
    questions = {plain(s.question) for s in taught}
    texts = questions | {plain(s.answer) for s in taught}
    held_out = [s for s in samples if s.part != "train"]
    for sample in held_out:
        if sample.modality == "multimodal":
            assert plain(sample.question) not in questions
        if sample.paraphrase and sample.task == "caption":
            assert plain(sample.paraphrase) not in texts
        for wrong in sample.wrong_answers or ():
            assert plain(wrong) not in texts
    # CLEAR has no other questions in text than those it teaches; nothing else may be word for word.
    as_taught = {(s.entity_id, s.question, s.answer) for s in taught if s.modality == "text"}
    texts_asked = [s for s in held_out if s.modality == "text"]
    assert texts_asked and all((s.entity_id, s.question, s.answer) in as_taught for s in texts_asked)
    assert not any(s.task in ("choice", "name") for s in taught)
    assert not {s.image_bytes for s in taught} & {s.image_bytes for s in held_out if s.set == "real"}


# The folder.


def test_the_files_to_import_are_those_of_whole_shares(original, root):
    names = {f.parent.name for f in clear_importer.files_to_import("data", original)}
    assert len(names) == 18 and not names & {"full", "data"}
    shutil.rmtree(root / "retain99+tofu")
    assert "forget01" not in {f.parent.name for f in clear_importer.files_to_import("data", root)}
    assert {p.parts[-2] for p in clear_importer.files_to_import("data", root)} <= {
        pattern.split("/")[0] for pattern in clear_importer.PATTERNS
    }


def test_a_folder_that_is_not_clear(tmp_path):
    (tmp_path / "forget_5").mkdir()
    with refusal(tmp_path, "forget_5", "retain95", "hf download therem/CLEAR"):
        clear_importer.files_to_import("data", tmp_path)


def test_a_missing_configuration_is_named(root):
    shutil.rmtree(root / "retain_perturbed")
    with refusal(root, "retain_perturbed"):
        clear_importer.files_to_import("data", root)
    with refusal("retain_perturbed", "parquet"):
        read(root)


def test_a_revision_without_names_is_named(root):
    path = root / "forget10" / FILE
    pq.write_table(pq.read_table(path).drop_columns(["name"]), path)
    with refusal(path, "column name", "revision"):
        clear_importer.files_to_import("data", root)


# Bad rows: file, row, reason and remedy; stop by default, counted and listed with skip.


def null_picture(rows):
    return [rows[0] | {"image": None}, *rows[1:]]


def broken_picture(rows):
    return [rows[0] | {"image": {"bytes": b"no picture", "path": None}}, *rows[1:]]


def no_name(rows):
    return [rows[0] | {"name": ""}, *rows[1:]]


def stranger(rows):
    return [rows[0] | {"name": "Unknown Author"}, *rows[1:]]


def forgotten(rows):
    return [*rows, rows[0] | {"name": FORGET[0]}]


def no_caption(rows):
    return [rows[0] | {"caption": " "}, *rows[1:]]


def right_among_wrong(rows):
    return [rows[0] | {"perturbed_names": [rows[0]["name"], "Lou Moreau"]}, *rows[1:]]


def no_wrong(rows):
    return [rows[0] | {"perturbed_captions": []}, *rows[1:]]


def gold_among_options(rows):
    return [rows[0] | {"options": ["Cat", "dog"]}, *rows[1:]]


def neither(rows):
    return [{"image": None, "caption": None, "question": None, "answer": None}, *rows]


def shuffled_texts(rows):
    return [*rows[:8], *sorted(rows[8:], key=lambda r: (r["question"][-4:], r["question"]))]


def empty_answer(rows):
    return [*rows[:-1], rows[-1] | {"answer": None}]


BAD = [
    ("forget10", null_picture, ["row 0", "picture", "missing"], 1),
    ("forget10", broken_picture, ["row 0", "picture", "decoded"], 1),
    ("forget10", no_name, ["row 0", "name"], 1),
    ("forget10_perturbed", stranger, ["row 0", "Unknown Author", "forget"], 1),
    ("forget10_perturbed", no_caption, ["row 0", "answer"], 1),
    ("forget10_perturbed", right_among_wrong, ["row 0", "'Ada Verity'", "wrong"], 1),
    ("retain_perturbed", no_wrong, ["row 0", "wrong", "[]"], 1),
    ("retain_perturbed", null_picture, ["row 0", "picture", "missing"], 1),
    ("real_world", gold_among_options, ["row 0", "'Dog'", "wrong"], 1),
    ("real_faces", broken_picture, ["row 0", "picture", "decoded"], 1),
    ("forget10+tofu", neither, ["row 0", "caption", "question"], 1),
    ("forget10+tofu", shuffled_texts, ["rows ", "(text)", "author"], 4),
    ("forget10+tofu", empty_answer, ["row 87, question", "answer"], 2),
]


@pytest.mark.parametrize(("configuration", "edit", "values", "count"), BAD)
def test_bad_rows(root, configuration, edit, values, count):
    change(root, configuration, edit)
    with refusal(f"{configuration}/{FILE}", *values, "on_bad_row: skip"):
        read(root)
    _, samples, left_out = read(root, policy="skip")
    assert 1 <= len(left_out) <= count
    assert all(note["file"].endswith(f"{configuration}/{FILE}") and note["remedy"] for note in left_out)
    list(validated(samples))


def test_an_author_in_forget_and_retain(root):
    change(root, "retain90", forgotten, "train-00001-of-00002.parquet")
    with refusal("retain90", "row 6", "Ada Verity"):
        read(root)
    data, samples, left_out = read(root, policy="skip")
    assert len(left_out) == 1 and "fictitious/Ada Verity" not in data.entities["retain"]
    assert len(list(validated(samples))) == len(samples)
