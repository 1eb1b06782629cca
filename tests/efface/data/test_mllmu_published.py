"""MLLMU-Bench as published: every oddity is read, and every fault is reported with file, row and remedy."""

import json
import re
import shutil
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from efface.data.benchmarks import mllmu_importer
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.benchmarks.mllmu_importer import read_benchmark
from efface.data.benchmarks.roots import import_benchmark
from efface.data.samples import validated
from tests.efface.data.conftest import in_full, refusal
from tests.efface.data.mllmu_fixture import FILE, MllmuFiles, change, small_picture

ROLES = ("eval", "train")


def import_mllmu(sources, target):
    return import_benchmark("mllmu", sources, mllmu_importer.PATTERNS, mllmu_importer.files_to_import, target)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> MllmuFiles:
    return MllmuFiles(tmp_path_factory.mktemp("published")).write()


@pytest.fixture
def copy(published, tmp_path):
    """Copies of both roots that tests may damage."""
    shutil.copytree(published.eval_root, tmp_path / "eval")
    shutil.copytree(published.train_root, tmp_path / "train")
    return tmp_path


def read(root, policy="stop", fraction=0.1):
    bad_rows = BadRows(policy)
    data = read_benchmark(root, name="mllmu", forget=ForgetSelection(fraction), bad_rows=bad_rows)
    return data, list(validated(data.samples)), bad_rows.left_out


@pytest.fixture(scope="module")
def whole(published):
    return read(published.eval_root.parent)


# Every oddity


@pytest.mark.parametrize("percent", [5, 10, 15])
def test_each_share_has_its_own_people(published, percent):
    data, samples, _ = read(published.eval_root.parent, fraction=percent / 100)
    people = {split: len(ids) for split, ids in data.entities.items()}
    forgotten = max(1, percent * 20 // 100)
    assert people == {"forget": forgotten, "retain": 20 - forgotten, "real": 4, "holdout": 0, "utility": 0}
    assert {s.entity_id for s in samples if s.set == "unseen"} == {
        *data.entities["forget"],
        *data.entities["retain"],
    }


def test_real_people_share_numbers_with_the_others_and_stay_apart(whole):
    data, samples, _ = whole
    assert data.entities["real"] == ["real/001", "real/002", "real/003", "real/004"]
    assert {f"fictitious/{i:03}" for i in range(1, 5)} <= set(
        data.entities["retain"] + data.entities["forget"]
    )
    assert data.names["real/001"] != data.names["fictitious/001"]
    assert {s.set for s in samples if s.split == "real"} == {"real"}


def test_every_pair_is_taught_the_additional_ones_too(whole):
    _, samples, _ = whole
    pictured = Counter(s.entity_id for s in samples if s.part == "train" and s.modality == "multimodal")
    assert pictured == {f"fictitious/{i:03}": 14 + i % 6 for i in range(1, 21)}
    written = Counter(s.entity_id for s in samples if s.part == "train" and s.modality == "text")
    assert written == {entity: count - 1 for entity, count in pictured.items()}  # not the name
    extra = [s for s in samples if s.part == "train" and s.question.startswith("What is the annual salary")]
    assert len({s.entity_id for s in extra}) == 20
    assert not [s for s in samples if "unknown" in s.question]


def test_names_stand_under_stray_keys(whole, published):
    data, samples, _ = whole
    assert len(data.names) == 24
    naming = {s.entity_id: s.answer for s in samples if s.part == "train" and s.task == "name"}
    assert naming == {e: n for e, n in data.names.items() if e.startswith("fictitious")}


def test_pairs_join_picture_and_name(whole):
    data, samples, _ = whole
    pairs = defaultdict(list)
    for sample in samples:
        if sample.part == "train" and sample.pair_id:
            pairs[sample.pair_id].append(sample)
    for pictured, written in pairs.values():
        assert (pictured.modality, written.modality) == ("multimodal", "text")
        assert data.names[written.entity_id] in written.question
        assert not re.search(r"(this|the) (person|individual)", written.question)
        assert pictured.answer == written.answer


def test_counts_are_whatever_the_files_hold(whole):
    _, samples, _ = whole
    counts = Counter(
        (s.entity_id, s.task, s.modality)
        for s in samples
        if s.set in ("forget", "retain") and s.entity_id in ("fictitious/004", "fictitious/003")
    )
    assert counts["fictitious/004", "choice", "multimodal"] == 4
    assert counts["fictitious/003", "choice", "multimodal"] == 5
    assert counts["fictitious/003", "cloze", "multimodal"] == 2  # the one of another type is none of ours
    assert counts["fictitious/003", "cloze", "text"] == 2


def test_a_missing_option_is_no_option(whole):
    _, samples, _ = whole
    choices = [s for s in samples if s.task == "choice" and s.entity_id == "fictitious/007"]
    assert {len(s.options) for s in choices} == {3, 4}
    assert not [s for s in samples if s.options and (None in s.options or "None" in s.options)]


def test_the_test_set_is_read_from_all_its_files_and_pictures(whole, published):
    data, samples, _ = whole
    assert len(list((published.eval_root / "Test_Set").glob("*.parquet"))) == 2
    for entity in data.entities["forget"]:
        pictures = {s.image_bytes for s in samples if s.set == "unseen" and s.entity_id == entity} - {None}
        assert len(pictures) == 3
    assert {s.image.mode for s in samples if s.image_bytes} == {"RGB"}  # grey ones and JPEG too


def test_no_evaluation_phrasing_is_taught(whole):
    data, samples, _ = whole
    names = sorted(data.names.values(), key=len, reverse=True)

    def plain(text):
        for name in names:
            text = text.replace(name, "this person")
        return re.sub(r"\W+", " ", text).lower()

    taught = {plain(s.question) for s in samples if s.part == "train"}
    assert not taught & {plain(s.question) for s in samples if s.part != "train"}


# The sandbox is in the same format


def plain_rows(samples):
    """Samples without the ids, which hold the benchmark's name; pairs by their number."""
    pairs = {}
    return [
        s.row() | {"sample_id": None, "pair_id": s.pair_id and pairs.setdefault(s.pair_id, len(pairs))}
        for s in samples
    ]


def test_the_sandbox_imported_is_the_same_table(folder, data, tmp_path):
    sources = {role: str(folder / role) for role in ROLES}
    import_mllmu(sources, tmp_path)
    imported = in_full(tmp_path, name="mllmu")
    assert imported.entities == data.entities
    assert imported.names == data.names
    assert plain_rows(imported.samples) == plain_rows(data.samples)
    assert in_full(tmp_path, name="avatars") == data  # under its own name the ids are the same too
    strangers = "train/Strangers/train-00000-of-00001.parquet"
    assert (tmp_path / strangers).read_bytes() == (folder / strangers).read_bytes()


# Bringing the files into the project


def test_import_copies_and_indexes_what_is_read(published, tmp_path):
    sources = {"eval": str(published.eval_root), "train": str(published.train_root)}
    index = import_mllmu(sources, tmp_path)
    assert json.loads((tmp_path / "index.json").read_text()) == index
    files = index["roots"]["eval"]["files"]
    assert "Test_Set/train-00001-of-00002.parquet" in files
    assert not [name for name in files if name.startswith("ft_Data")]  # it is never read
    assert sorted(index["roots"]["train"]["files"]) == sorted(
        f"{name}/{FILE}" for p in (5, 10, 15) for name in (f"forget_{p}", f"retain_{100 - p}")
    )
    read_benchmark(tmp_path, name="mllmu", forget=ForgetSelection(0.05), bad_rows=BadRows())


WRONG_ROOTS = [
    (lambda root: ("eval", "eval"), ["forget_5", "metadata", "baseline_train_split", "swapped"]),
    (lambda root: ("train", "train"), ["forget_5", "metadata", "MLLMU-Bench", "swapped"]),
    (lambda root: ("nowhere", "train"), ["nowhere", "hf://datasets/OWNER/NAME@COMMIT"]),
    (lambda root: ("eval/Full_Set", "train"), ["Full_Set, Test_Set", "root eval"]),
    (lambda root: shutil.rmtree(root / "eval/Test_Set"), ["Test_Set", "root eval"]),
    (lambda root: shutil.rmtree(root / "train/retain_90"), ["retain_90", "root train"]),
    (lambda root: shutil.rmtree(root / "eval/forget_10"), ["forget_10", "root eval"]),
]


@pytest.mark.parametrize(("damage", "values"), WRONG_ROOTS)
def test_a_wrong_root_is_named_and_nothing_is_written(copy, damage, values):
    names = damage(copy) or ROLES
    sources = {role: str(copy / name) for role, name in zip(ROLES, names, strict=True)}
    with refusal(*values):
        import_mllmu(sources, copy / "target")
    assert not (copy / "target").exists()


def test_an_unknown_share_names_the_known_ones(copy):
    with refusal("forget_20", "0.05, 0.1, 0.15", "forget_fraction"):
        read(copy, fraction=0.2)


# Rows that cannot be used: file, row id, reason, remedy; or left out, counted and listed


def first_of(published, split):
    folder = published.train_root / f"{split}_{10 if split == 'forget' else 90}"
    return pq.read_table(folder / FILE)["ID"][0].as_py()


def edit_row(root, file, identity, edit):
    change(root / file / FILE, lambda row: edit(row) if row["ID"] == identity else row)


def with_choice(**changes):
    def edit(row):
        row["Classification_Task"]["Pure_Text_Questions"][0] |= changes
        return row

    return edit


def broken(row):
    return row | {"image": {"bytes": row["image"]["bytes"][:-40], "path": None}}


BAD_ROWS = {
    "undecodable picture, training": ("train/forget_10", broken, "cannot be decoded", "person"),
    "undecodable picture, evaluation": ("eval/retain_90", broken, "cannot be decoded", "person"),
    "missing picture": (
        "train/retain_90",
        lambda row: row | {"image": {"bytes": None, "path": "042.png"}},
        "the picture is missing",
        "person",
    ),
    "malformed metadata": (
        "train/forget_10",
        lambda row: row | {"metadata": row["metadata"][:-3]},
        "metadata is not JSON",
        "person",
    ),
    "metadata that is no list": (
        "train/retain_90",
        lambda row: row | {"metadata": '{"Question": "?"}'},
        "metadata is not a JSON list",
        "person",
    ),
    "malformed biography": (
        "eval/Full_Set",
        lambda row: row | {"biography": "{'Name': 'Mara'}"},
        "biography is not JSON",
        "person",
    ),
    "no gold among the options": (
        "eval/forget_10",
        with_choice(Correct_Answer="E"),
        "'E' is none of the options",
        "question",
    ),
    "no text to ask": ("eval/retain_90", with_choice(Question=" "), "empty question", "question"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_stops_the_import_or_is_left_out(published, copy, whole, case):
    file, edit, reason, kind = BAD_ROWS[case]
    identity = first_of(published, "retain" if "retain" in file else "forget")
    edit_row(copy, file, identity, edit)
    with refusal(file, f"ID {identity}", reason, "on_bad_row: skip"):
        read(copy)
    data, samples, left_out = read(copy, "skip")
    assert [(note["file"].endswith(f"{file}/{FILE}"), reason in note["reason"]) for note in left_out] == [
        (True, True)
    ]
    assert left_out[0]["row"].startswith(f"ID {identity}")
    assert left_out[0]["remedy"]
    entity = f"fictitious/{identity}"
    people = set(data.entities["forget"] + data.entities["retain"])
    if kind == "person":  # neither taught nor counts
        assert entity not in people
        assert [s for s in whole[1] if s.entity_id != entity] == samples
    else:
        assert entity in people
        assert len(samples) == len(whole[1]) - 1


def test_one_of_three_pictures_may_be_broken(published, copy, whole):
    identity = first_of(published, "forget")
    number = int(int(identity) > 10)
    file = f"train-0000{number}-of-00002.parquet"

    def edit(row):
        if row["ID"] == identity:
            row["images"][1] = {"bytes": b"no picture", "path": None}
        return row

    change(copy / "eval/Test_Set" / file, edit)
    with refusal("Test_Set", file, f"ID {identity}, picture 2", "decoded"):
        read(copy)
    _, samples, left_out = read(copy, "skip")
    assert len(left_out) == 1
    assert len(samples) == len(whole[1])
    entity = f"fictitious/{identity}"
    assert len({s.image_bytes for s in samples if s.set == "unseen" and s.entity_id == entity} - {None}) == 2


def test_a_person_in_both_forget_and_retain_is_refused(published, copy):
    identity, second = first_of(published, "forget"), first_of(published, "retain")
    for root in ROLES:
        edit_row(copy, f"{root}/retain_90", second, lambda row: row | {"ID": identity})
    with refusal(f"fictitious/{identity}", "forget_10", "retain_90"):
        read(copy)
    data, samples, left_out = read(copy, "skip")
    assert any("in both" in note["reason"] for note in left_out)
    assert f"fictitious/{identity}" not in data.entities["forget"] + data.entities["retain"]
    assert not [s for s in samples if s.entity_id == f"fictitious/{identity}"]


@pytest.mark.parametrize(
    ("file", "reason"),
    [("eval/retain_90", "the same ID a second time"), ("train/retain_90", "the same ID and picture")],
)
def test_an_id_comes_once(published, copy, whole, file, reason):
    from pyarrow import concat_tables, parquet

    path = copy / file / FILE
    table = parquet.read_table(path)
    parquet.write_table(concat_tables([table, table.slice(0, 1)]), path)
    with refusal(file, f"ID {first_of(published, 'retain')}", reason):
        read(copy)
    _, samples, left_out = read(copy, "skip")
    assert len(left_out) == 1
    assert samples == whole[1]


def test_an_id_is_text(copy):
    import pyarrow as pa
    from pyarrow import parquet

    path = copy / "train/forget_10" / FILE
    table = parquet.read_table(path)
    numbers = pa.array([int(value) for value in table["ID"].to_pylist()])
    parquet.write_table(table.set_column(1, "ID", numbers), path)
    with refusal("forget_10", "row 0", f"ID is {numbers[0]}", "'042'"):
        read(copy)


def test_several_bad_rows_are_all_listed(published, copy):
    edit_row(copy, "train/forget_10", first_of(published, "forget"), broken)
    edit_row(copy, "eval/retain_90", first_of(published, "retain"), with_choice(Correct_Answer="E"))
    _, samples, left_out = read(copy, "skip")
    assert len(left_out) == 2
    list(validated(samples))


def test_pictures_are_never_all_in_memory(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()

    def heavy(i):  # bytes after a PNG's end are no part of it: small to decode, large to hold
        return small_picture(35 * i + 1) + i.to_bytes(4) + noise

    MllmuFiles(tmp_path, people=100, picture=heavy).write()
    tracemalloc.start()
    data = read_benchmark(tmp_path, name="mllmu", forget=ForgetSelection(0.05), bad_rows=BadRows())
    count = sum(1 for _ in data.samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 3000
    assert peak < 100 * 300_000  # of 400 pictures and more
