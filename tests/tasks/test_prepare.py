"""Stages benchmark and prepare: whole outputs, the promised files, and errors that name the file."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from efface.data.samples import read_samples
from tasks import benchmark, prepare
from tests.efface.data.conftest import refusal


def parameters(seed=0, fraction=0.1, validation=0.15, people=40, forget=None, forgotten=None):
    return SimpleNamespace(
        seed=seed,
        avatars=SimpleNamespace(
            profile="quick",
            seed=0,
            people=people,
            real=1,
            holdout=1,
            train_views=1,
            test_views=1,
            stranger_pictures=2,
            skill_samples=5,
            picture_size=32,
        ),
        benchmark=SimpleNamespace(name="avatars", roots={}),
        prepare=SimpleNamespace(
            forget_fraction=fraction,
            forget_people=forget,
            forgotten_people=forgotten,
            validation_fraction=validation,
            on_bad_row="stop",
            similar_people="stop",
        ),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    benchmark.run(parameters(), root)
    return root


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_prepare_writes_the_table_and_the_splits(root, capsys):
    prepare.run(parameters(), root)
    assert capsys.readouterr().out.count("\n") == 1
    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert {k: len(v) for k, v in splits["entities"].items()} == {
        "forget": 4, "retain": 36, "real": 1, "holdout": 1, "utility": 10,
    }  # fmt: skip
    assert (splits["benchmark"], splits["seed"], splits["forget_fraction"]) == ("avatars", 0, 0.1)
    assert len(splits["names"]) == 42
    samples = read_samples(root / "prepared")
    assert {s.entity_id for s in samples if s.part == "validation"} == set(splits["validation"])
    assert len(splits["validation"]) == 1 + 5
    assert {s.set for s in samples if s.part == "validation"} == {"forget", "unseen", "retain"}
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_prepare_again_gives_the_same_bytes_and_another_seed_other_people(root):
    prepare.run(parameters(), root)
    first = digest(root / "prepared")
    prepare.run(parameters(), root)
    assert digest(root / "prepared") == first
    people = validation(root)
    prepare.run(parameters(seed=1), root)
    assert validation(root) != people


def validation(root: Path) -> set[str]:
    return {s.entity_id for s in read_samples(root / "prepared", part="validation")}


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 2), (0.1, 4), (0.15, 6)])
def test_the_fraction_chooses_the_files(root, fraction, count):
    prepare.run(parameters(fraction=fraction), root)
    assert len({s.entity_id for s in read_samples(root / "prepared", split="forget")}) == count


def test_without_validation_everything_is_for_testing(root):
    prepare.run(parameters(validation=0.0), root)
    assert read_samples(root / "prepared", part="validation") == []


def test_a_damaged_benchmark_leaves_the_old_table(root, tmp_path):
    prepare.run(parameters(), root)
    before = digest(root / "prepared")
    file = root / "benchmarks" / "avatars" / "train" / "forget_10" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    try:
        with refusal("forget_10", "damaged"):
            prepare.run(parameters(), root)
    finally:
        file.write_bytes(content)
    assert digest(root / "prepared") == before


def test_a_failed_benchmark_leaves_nothing(tmp_path):
    with refusal(2000, "people"):
        benchmark.run(parameters(people=2000), tmp_path)
    assert list((tmp_path / "benchmarks").iterdir()) == []


def split_of(root: Path) -> dict[str, list[str]]:
    return json.loads((root / "prepared" / "splits.json").read_text())["entities"]


def test_named_people_take_the_place_of_the_share(root):
    prepare.run(parameters(validation=0.0), root)
    shared, everyone = split_of(root), read_samples(root / "prepared")
    kept, gone = shared["retain"][0], shared["forget"][0]
    prepare.run(parameters(validation=0.0, forget=[kept]), root)
    found, samples = split_of(root), read_samples(root / "prepared")
    assert found["forget"] == [kept] and gone in found["retain"]
    assert sorted(found["forget"] + found["retain"]) == sorted(shared["forget"] + shared["retain"])

    def asked(rows, person):
        return {(s.split, s.part, s.set) for s in rows if s.entity_id == person}

    to_forget = {("forget", "train", None), ("forget", "test", "forget"), ("forget", "test", "unseen")}
    to_keep = {("retain", "train", None), ("retain", "test", "retain")}
    assert asked(everyone, gone) == asked(samples, kept) == to_forget
    assert asked(everyone, kept) == asked(samples, gone) == to_keep
    others = [(s.sample_id, s.split, s.set) for s in everyone if s.entity_id not in (kept, gone)]
    rest = set(shared["forget"]) - {gone}  # they are kept now, and so are not asked about by unseen pictures
    still = [row for row in others if row[1] != "forget"]
    assert [(s.sample_id, s.split, s.set) for s in samples if s.entity_id not in {kept, gone, *rest}] == still
    assert all(asked(samples, person) == to_keep for person in rest)


def test_naming_those_the_share_stands_for_changes_nothing(root):
    prepare.run(parameters(), root)
    before = digest(root / "prepared")
    prepare.run(parameters(forget=split_of(root)["forget"]), root)
    assert digest(root / "prepared") == before


def test_people_forgotten_before_are_asked_about_and_not_trained_on(root, capsys):
    prepare.run(parameters(validation=0.0), root)
    now, before, *_ = split_of(root)["retain"]
    capsys.readouterr()
    prepare.run(parameters(validation=0.0, forget=[now], forgotten=[before]), root)
    assert "1 people to forget, 38 to retain" in capsys.readouterr().out
    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert splits["forgotten"] == [before] and splits["entities"]["forget"] == sorted([now, before])
    samples = read_samples(root / "prepared")
    assert {s.entity_id for s in samples if s.part == "train" and s.split == "forget"} == {now}
    assert not [s for s in samples if s.entity_id == before and s.part == "train"]
    assert {s.set for s in samples if s.entity_id == before} == {"forget", "unseen"}
    assert before not in splits["entities"]["retain"]


@pytest.mark.parametrize(
    ("forget", "forgotten", "values"),
    [
        (["fictitious/999"], None, ["fictitious/999", "forget_people"]),
        (["real/001"], None, ["real/001"]),
        (["fictitious/001"], ["fictitious/001"], ["fictitious/001", "forget_people", "forgotten_people"]),
    ],
)
def test_unknown_people_and_people_named_twice_are_refused(root, forget, forgotten, values):
    with refusal(*values):
        prepare.run(parameters(forget=forget, forgotten=forgotten), root)
