"""Stages benchmark, prepare and split: whole outputs, the promised files, and errors that name the file."""

import hashlib
import json
from pathlib import Path

import pytest

from efface.data.samples import read_samples
from tasks import benchmark
from tasks import prepare as prepare_stage
from tasks import split as split_stage
from tasks.config import Params
from tests.efface.conftest import picture
from tests.efface.data.conftest import refusal

AVATARS = {
    "people": 40, "real": 1, "holdout": 1, "train_views": 1, "test_views": 1, "stranger_pictures": 2,
    "skill_samples": 5, "picture_size": 32,
}  # fmt: skip


def parameters(
    seed=0, fraction=0.1, validation=0.15, people=40, forget=None, forgotten=None, roots=None, **sections
):
    split = {
        "forget_fraction": fraction,
        "forget_people": forget,
        "forgotten_people": forgotten,
        "validation_fraction": validation,
        **sections.pop("split", {}),
    }
    benchmark = {"name": "vqa" if roots else "avatars", "roots": roots or {}}
    return Params.model_validate(
        {
            "seed": seed,
            "avatars": AVATARS | {"people": people},
            "benchmark": benchmark,
            "split": split,
            **sections,
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    benchmark.run(parameters(), root)
    prepare_stage.run(parameters(), root)
    return root


def prepare_and_split(params: Params, root: Path) -> None:
    prepare_stage.run(params, root)
    split_stage.run(params, root)


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_prepare_writes_the_table_and_the_splits(root, capsys):
    prepare_and_split(parameters(), root)
    assert capsys.readouterr().out.count("\n") == 2
    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert {k: len(v) for k, v in splits["entities"].items()} == {
        "forget": 4, "retain": 36, "real": 1, "holdout": 1, "utility": 10,
    }  # fmt: skip
    assert (splits["benchmark"], splits["seed"], splits["forget_fraction"]) == ("avatars", 0, 0.1)
    assert len(splits["names"]) == 42
    samples = read_samples(root / "prepared")
    assert {s.entity_id for s in samples if s.part == "validation"} == set(splits["validation"])
    assert len(splits["validation"]) == 1 + 5
    assert {s.set for s in samples if s.part == "validation"} == {
        "forget", "unseen", "retain", "perception",
    }  # fmt: skip
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_prepare_again_gives_the_same_bytes_and_another_seed_other_people(root):
    prepare_and_split(parameters(), root)
    first = digest(root / "prepared")
    prepare_and_split(parameters(), root)
    assert digest(root / "prepared") == first
    people = validation(root)
    prepare_and_split(parameters(seed=1), root)
    assert validation(root) != people


def validation(root: Path) -> set[str]:
    return {s.entity_id for s in read_samples(root / "prepared", part="validation")}


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 2), (0.1, 4), (0.15, 6)])
def test_the_fraction_chooses_the_files(root, fraction, count):
    prepare_and_split(parameters(fraction=fraction), root)
    assert len({s.entity_id for s in read_samples(root / "prepared", split="forget")}) == count


def test_without_validation_everything_is_for_testing(root):
    split_stage.run(parameters(validation=0.0), root)
    assert read_samples(root / "prepared", part="validation") == []


def test_a_damaged_benchmark_leaves_the_old_table(root, tmp_path):
    prepare_and_split(parameters(), root)
    before = digest(root / "prepared")
    file = root / "benchmarks" / "avatars" / "train" / "forget_10" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    try:
        with refusal("forget_10", "damaged"):
            prepare_and_split(parameters(), root)
    finally:
        file.write_bytes(content)
    assert digest(root / "prepared") == before


def test_a_failed_benchmark_leaves_nothing(tmp_path):
    with refusal(2002, "people"):
        benchmark.run(parameters(people=2000), tmp_path)
    assert list((tmp_path / "benchmarks").iterdir()) == []


def split_of(root: Path) -> dict[str, list[str]]:
    return json.loads((root / "prepared" / "splits.json").read_text())["entities"]


def test_named_people_take_the_place_of_the_share(root):
    split_stage.run(parameters(validation=0.0), root)
    shared, everyone = split_of(root), read_samples(root / "prepared")
    first, second = shared["retain"][0], shared["forget"][0]
    split_stage.run(parameters(validation=0.0, forget=[first]), root)
    splits, samples = split_of(root), read_samples(root / "prepared")
    assert splits["forget"] == [first] and second in splits["retain"]
    assert sorted(splits["forget"] + splits["retain"]) == sorted(shared["forget"] + shared["retain"])

    def places(rows, person):
        return {(s.split, s.part, s.set) for s in rows if s.entity_id == person}

    to_forget = {("forget", "train", None), ("forget", "test", "forget"), ("forget", "test", "unseen")}
    to_forget |= {("forget", "test", "perception")}
    to_keep = {("retain", "train", None), ("retain", "test", "retain")}
    assert places(everyone, second) == places(samples, first) == to_forget
    assert places(everyone, first) == places(samples, second) == to_keep
    unchanged = [(s.sample_id, s.split, s.set) for s in everyone if s.entity_id not in (first, second)]
    rest = set(shared["forget"]) - {second}  # retained now, so they have no rows of the unseen set
    unchanged = [row for row in unchanged if row[1] != "forget"]
    changed = {first, second, *rest}
    assert [(s.sample_id, s.split, s.set) for s in samples if s.entity_id not in changed] == unchanged
    assert all(places(samples, person) == to_keep for person in rest)


def test_naming_those_the_share_stands_for_changes_nothing(root):
    split_stage.run(parameters(), root)
    before = digest(root / "prepared")
    split_stage.run(parameters(forget=split_of(root)["forget"]), root)
    assert digest(root / "prepared") == before


def test_people_of_any_benchmark_can_be_named_by_their_names(root):
    split_stage.run(parameters(), root)
    person = split_of(root)["retain"][0]
    name = json.loads((root / "prepared" / "splits.json").read_text())["names"][person]
    split_stage.run(parameters(forget=[person]), root)
    by_id = digest(root / "prepared")
    split_stage.run(parameters(forget=[name.upper().replace(" ", "\u00a0")]), root)
    assert digest(root / "prepared") == by_id


def test_people_forgotten_earlier_are_evaluated_but_not_trained_on(root, capsys):
    split_stage.run(parameters(validation=0.0), root)
    now, before, *_ = split_of(root)["retain"]
    capsys.readouterr()
    split_stage.run(parameters(validation=0.0, forget=[now], forgotten=[before]), root)
    assert "1 people to forget, 38 to retain" in capsys.readouterr().out
    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert splits["forgotten"] == [before] and splits["entities"]["forget"] == sorted([now, before])
    samples = read_samples(root / "prepared")
    assert {s.entity_id for s in samples if s.part == "train" and s.split == "forget"} == {now}
    assert not [s for s in samples if s.entity_id == before and s.part == "train"]
    assert {s.set for s in samples if s.entity_id == before} == {"forget", "unseen", "perception"}
    assert before not in splits["entities"]["retain"]


@pytest.mark.parametrize("before", [False, True])
def test_of_a_person_only_some_facts_are_forgotten(root, before):
    split_stage.run(parameters(validation=0.0), root)
    person, other = split_of(root)["retain"][:2]
    people = {"forget": [other], "forgotten": [person]} if before else {"forget": [person]}
    split_stage.run(
        parameters(validation=0.0, split={"forget_attributes": {person: ["birthplace"]}}, **people), root
    )
    rows = [s for s in read_samples(root / "prepared") if s.entity_id == person]
    forget = {(s.part, s.set) for s in rows if s.attribute == "birthplace"}
    retain = {(s.part, s.set) for s in rows if s.attribute != "birthplace"}
    training = set() if before else {("train", None)}
    assert forget == {("test", "forget"), ("test", "unseen")} | training
    assert {s.split for s in rows if s.attribute == "birthplace"} == {"forget"}
    assert retain == {("train", None), ("test", "retain")}
    assert {s.split for s in rows if s.attribute != "birthplace"} == {"retain"}
    retained = read_samples(root / "prepared", split="retain", part="train")
    assert {s.attribute for s in retained if s.entity_id == person} >= {"occupation", "name"}


@pytest.mark.parametrize(
    ("attributes", "values"),
    [
        ({"fictitious/001": ["shoe size"]}, ["fictitious/001", "shoe size", "birthplace"]),
        ({"fictitious/002": ["birthplace"]}, ["fictitious/002", "forget_people"]),
    ],
)
def test_facts_that_cannot_be_told_apart_are_refused(root, attributes, values):
    with refusal(*values):
        split_stage.run(parameters(forget=["fictitious/001"], split={"forget_attributes": attributes}), root)


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
        split_stage.run(parameters(forget=forget, forgotten=forgotten), root)


def test_the_table_is_the_same_whoever_is_forgotten(root):
    prepare_and_split(parameters(), root)
    table, splits = (digest(root / "prepared")[name] for name in ("samples.parquet", "splits.json"))
    person = split_of(root)["retain"][0]
    for changes in ({"fraction": 0.15}, {"forget": [person]}, {"split": {"folds": 4}}, {"seed": 1}):
        prepare_and_split(parameters(**changes), root)
        assert digest(root / "prepared")["samples.parquet"] == table
        assert digest(root / "prepared")["splits.json"] != splits
    rows = read_samples(root / "prepared" / "samples.parquet")
    assert {s.split for s in rows} == {"people", "real", "holdout", "utility"}
    assert {s.part for s in rows} == {"train", "test"}
    assert len({s.entity_id for s in rows if s.set == "unseen"}) == 40
    taught = [s.entity_id for s in rows if s.part == "train" and s.split == "people"]
    assert taught == sorted(taught)


def test_the_table_alone_does_not_say_who_is_forgotten(root):
    prepare_and_split(parameters(), root)
    with refusal("samples.parquet", "splits.json"):
        read_samples(root / "prepared" / "samples.parquet", split="forget")


def test_rows_come_by_split_and_person(root):
    prepare_and_split(parameters(), root)
    rows = read_samples(root / "prepared")
    training = [s for s in rows if s.part == "train"]
    assert rows[: len(training)] == training
    order = list(dict.fromkeys(s.split for s in training))
    assert order == ["forget", "retain", "real", "utility"]
    sets = list(dict.fromkeys(s.set for s in rows[len(training) :]))
    assert sets == ["forget", "unseen", "retain", "real", "holdout", "utility", "perception"]
    for kind in ("forget", "retain"):
        people = [s.entity_id for s in rows if s.set == kind]
        assert people == sorted(people)
    for filters in (
        {"split": "forget"},
        {"set": ("forget", "real")},
        {"part": "validation"},
        {"set": "unseen"},
        {"set": "perception"},
    ):
        expected = [
            s
            for s in rows
            if all(getattr(s, k) in (v if isinstance(v, tuple) else (v,)) for k, v in filters.items())
        ]
        assert expected and read_samples(root / "prepared", **filters) == expected


def test_folds_forget_every_person_once(root):
    forgotten = []
    for fold in range(3):
        prepare_and_split(parameters(validation=0.0, split={"folds": 3, "fold": fold}), root)
        forgotten += split_of(root)["forget"]
        assert len(split_of(root)["retain"]) + len(split_of(root)["forget"]) == 40
    assert len(forgotten) == len(set(forgotten)) == 40
    with refusal("folds is 41", 40):
        prepare_and_split(parameters(split={"folds": 41}), root)


# A table of one's own: one person in two spellings, and what the table has no rows for.


def own_table(folder: Path, rows: list[dict]) -> dict[str, str]:
    file = folder / "people.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": str(file)}


def row(person, question=None, **changes):
    return {
        "question": question or f"Where does {person} live?",
        "answer": "Oslo",
        "person": person,
    } | changes


SPELLINGS = [("Zoë Stone", "Zoe\u0308 Stone"), ("Zoë Stone", "Zoë\u00a0Stone"), ("Zoë Stone", "zoë  stone")]


@pytest.mark.parametrize(("first", "second"), SPELLINGS)
def test_one_person_in_two_spellings_is_refused_unless_said_to_be_two(tmp_path, first, second):
    roots = own_table(tmp_path, [row(first), row(second), row("Ada Verity")])
    params = parameters(roots=roots, forget=["Ada Verity"])
    benchmark.run(params, tmp_path)
    with refusal(ascii(f"person/{first}"), ascii(f"person/{second}"), "prepare.similar_people"):
        prepare_and_split(params, tmp_path)
    assert not (tmp_path / "prepared").exists()
    distinct = parameters(roots=roots, forget=["Ada Verity"], prepare={"similar_people": "distinct"})
    prepare_and_split(distinct, tmp_path)
    assert len(split_of(tmp_path)["retain"]) == 2


@pytest.mark.parametrize("typed", ["Zoe\u0308 Stone", "ZOË\u2003STONE", "person/zoë stone"])
def test_a_person_is_forgotten_whatever_way_the_name_is_typed(tmp_path, typed):
    roots = own_table(tmp_path, [row("Zoë Stone"), row("Ada Verity")])
    benchmark.run(parameters(roots=roots), tmp_path)
    prepare_and_split(parameters(roots=roots, forget=[typed]), tmp_path)
    assert split_of(tmp_path)["forget"] == ["person/Zoë Stone"]


def lacking(tmp_path, capsys, rows, **sections):
    params = parameters(roots=own_table(tmp_path, rows), forget=["Ada Verity"], validation=0, **sections)
    benchmark.run(params, tmp_path)
    capsys.readouterr()
    prepare_and_split(params, tmp_path)
    return capsys.readouterr().err


def test_a_table_with_everything_lacks_nothing(root, capsys):
    prepare_and_split(parameters(), root)
    assert capsys.readouterr().err == ""


def test_a_text_only_table_says_what_it_cannot_feed(tmp_path, capsys):
    rows = [row(person, f"Where does {person} live?") for person in ("Ada Verity", "Bo Dahl")]
    curve = {"unlearn": {"curve": {"every": 5}}}
    lines = lacking(tmp_path, capsys, rows, **curve).splitlines()[1:]
    assert len(lines) == 3
    for words, line in zip(
        [
            ("unlearn.methods mmunlearner", "npo", "saliency", "multimodal", "unlearn.forget to [text]"),
            ("prune.methods manu", "importance", "forget and retain"),
            ("unlearn.curve", "null"),
        ],
        lines,
        strict=True,
    ):
        assert not [word for word in words if word not in line], line


def test_text_questions_that_do_not_say_who_is_meant_are_reported(tmp_path, capsys):
    text = {"unlearn": {"forget": ["text"]}, "prune": {"methods": {}}, "requests": {"method": "npo"}}
    rows = [row("Ada Verity", "Where does this person live?"), row("Bo Dahl")]
    params = parameters(roots=own_table(tmp_path, rows), forget=["Ada Verity"], validation=0, **text)
    benchmark.run(params, tmp_path)
    capsys.readouterr()
    prepare_and_split(params, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 questions" in line and "Where does this person live?" in line and "person/Ada Verity" in line


def test_goals_that_the_table_can_feed_are_not_listed(tmp_path, capsys):
    rows = [row(person, f"Where does {person} live?") for person in ("Ada Verity", "Bo Dahl")]
    text = {"unlearn": {"forget": ["text"]}, "prune": {"methods": {}}, "requests": {"method": "npo"}}
    assert lacking(tmp_path, capsys, rows, **text) == ""


@pytest.mark.parametrize("change", [{"person": "042"}, {"question": "¿Dónde vive?"}])
def test_pictures_without_text_renderings_cannot_be_pruned(tmp_path, capsys, change):
    for i, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(picture(i))
    person = change.get("person", "Ada Verity")
    rows = [row("Bo Dahl", image="a.png"), row("Ada Verity", "Where does this person live?", image="b.png")]
    rows = [r | change if r["person"] == "Ada Verity" else r for r in rows]
    params = parameters(roots=own_table(tmp_path, rows), forget=[person], validation=0)
    benchmark.run(params, tmp_path)
    capsys.readouterr()
    prepare_and_split(params, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()[1:]
    assert "prune.methods manu" in line and "the forget people" in line and "name" in line


def test_people_without_evaluation_rows_are_named(tmp_path, capsys):
    rows = [row("Ada Verity", "Where does Ada Verity live?", part="train"), row("Bo Dahl")]
    assert "evaluate, attack, report: the forget people" in lacking(tmp_path, capsys, rows)


def test_a_person_to_forget_whom_no_training_row_is_about_is_named(tmp_path, capsys):
    rows = [row(person, part="train") for person in ("Ada Verity", "Bo Dahl", "Cleo Marsh")]
    rows[1] |= {"part": "test"}
    rows += [row(person, "Which town?", part="test") for person in ("Ada Verity", "Cleo Marsh")]
    text = {"unlearn": {"forget": ["text"]}, "prune": {"methods": {}}, "requests": {"method": "npo"}}
    params = parameters(
        roots=own_table(tmp_path, rows), forget=["Ada Verity", "Bo Dahl"], validation=0, **text
    )
    benchmark.run(params, tmp_path)
    capsys.readouterr()
    prepare_and_split(params, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()[1:]
    assert "unlearn.methods: 1 of" in line and "person/Bo Dahl" in line and "Ada" not in line
    assert "forgotten_people" in line


def test_a_picture_of_several_people_is_named(tmp_path, capsys):
    for i, name in enumerate(("group.png", "copy.png", "alone.png")):
        (tmp_path / name).write_bytes(picture(min(i, 1)))  # the first two differ, the last two do not
    rows = [row("Ada Verity", image="copy.png"), row("Bo Dahl", image="alone.png")]
    rows += [row("Cleo Marsh", image="group.png"), row("Cleo Marsh", "What is her pet?", image="group.png")]
    (line,) = lacking(tmp_path, capsys, rows).splitlines()
    assert "person/Ada Verity' and 'person/Bo Dahl'" in line and "1 groups" in line and "Cleo" not in line
