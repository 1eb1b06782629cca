"""MLLMU-Bench files become samples: the embedded benchmark's, and files without its added columns."""

import dataclasses
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efface.data.benchmarks.avatars import questions
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.benchmarks.mllmu_importer import read_benchmark
from efface.data.samples import validated
from tests.efface.data.conftest import in_full, refusal

FILE = "train-00000-of-00001.parquet"


def test_every_row_keeps_to_the_data_model(data):
    assert len(list(validated(data.samples))) == len(data.samples)


def test_reading_twice_gives_the_same(folder, data):
    assert in_full(folder, name="avatars") == data
    renamed = in_full(folder, name="other")
    assert not {s.sample_id for s in renamed.samples} & {s.sample_id for s in data.samples}


def test_splits_are_disjoint_and_complete(data):
    everyone = [entity for ids in data.entities.values() for entity in ids]
    assert len(everyone) == len(set(everyone))
    assert {s: len(ids) for s, ids in data.entities.items()} == {
        "forget": 2, "retain": 18, "real": 4, "holdout": 4, "utility": 15,
    }  # fmt: skip
    assert {s.entity_id for s in data.samples} == set(everyone)
    for sample in data.samples:
        assert sample.entity_id in data.entities[sample.split]
    assert {f"fictitious/{i:03}" for i in range(1, 21)} == set(
        data.entities["forget"] + data.entities["retain"]
    )
    assert len(data.names) == 28


def test_holdout_people_are_never_trained(data):
    assert {s.split for s in data.samples if s.part == "train"} == {"forget", "retain", "real", "utility"}
    assert {s.set for s in data.samples if s.split == "holdout"} == {"holdout"}


def test_each_training_fact_has_one_text_rendering(data):
    pairs = defaultdict(list)
    for sample in data.samples:
        if sample.part == "train" and sample.split != "utility" and sample.task != "name":
            pairs[sample.pair_id].append(sample)
    assert None not in pairs
    for pictured, written in pairs.values():
        name = data.names[pictured.entity_id]
        assert (pictured.modality, written.modality) == ("multimodal", "text")
        assert pictured.image_bytes
        assert written.image_bytes is None
        assert pictured.attribute == written.attribute
        assert written.answer == pictured.answer
        assert name in written.question
        assert name not in pictured.question


def test_the_question_for_the_name_has_no_text_rendering(data):
    naming = [s for s in data.samples if s.task == "name" and s.part == "train"]
    assert Counter(s.entity_id for s in naming) == {
        e: 4 for split in ("forget", "retain", "real") for e in data.entities[split]
    }
    for sample in naming:
        assert sample.modality == "multimodal"
        assert sample.pair_id is None
        assert sample.answer == data.names[sample.entity_id]


def test_evaluation_pairs_ask_the_same_of_both_renderings(data):
    pairs = defaultdict(list)
    for sample in data.samples:
        if sample.part == "test" and sample.pair_id:
            pairs[sample.pair_id].append(sample)
    assert len(pairs) == 8 * (2 * 20 + 4 + 4)
    for pictured, written in pairs.values():
        assert (pictured.modality, written.modality) == ("multimodal", "text")
        assert (pictured.task, pictured.attribute, pictured.set) == (
            written.task,
            written.attribute,
            written.set,
        )
        assert set(pictured.options or ()) == set(written.options or ())


def about_anybody(text, names):
    for name in names:
        text = text.replace(name, "this person")
    return re.sub(r"\W+", " ", text).strip().lower()


def test_no_evaluation_phrasing_is_taught(data):
    names = sorted(data.names.values())
    taught = {about_anybody(s.question, names) for s in data.samples if s.part == "train"}
    taught_answers = {about_anybody(s.answer, names) for s in data.samples if s.part == "train"}
    for sample in data.samples:
        if sample.part == "test":
            assert about_anybody(sample.question, names) not in taught
            for text in (sample.paraphrase, *(sample.wrong_answers or ())):
                assert text is None or about_anybody(text, names) not in taught | taught_answers


def test_the_test_set_asks_in_yet_other_words(data):
    names = sorted(data.names.values())
    evaluation = {about_anybody(s.question, names) for s in data.samples if s.set in ("forget", "retain")}
    assert not evaluation & {about_anybody(s.question, names) for s in data.samples if s.set == "unseen"}


def test_the_evaluation_uses_words_that_training_teaches():
    def words(*groups):
        text = " ".join(phrase for group in groups for phrase in group)
        return set(re.findall(r"__|\w+", text.format(noun="").lower().replace("this person", "")))

    taught = words(questions.TRAINING, questions.TRAINING_NAME, *questions.SKILLS.values())
    evaluation = words(
        *questions.EVALUATION.values(), *questions.REWORDED.values(), *questions.SKILLS_EVALUATION.values()
    )
    assert evaluation <= taught


def test_sets_and_pictures(data):
    taught = {s.image_bytes for s in data.samples if s.part == "train"}
    for sample in data.samples:
        if (
            sample.part == "test"
            and sample.modality == "multimodal"
            and sample.set in ("forget", "retain", "real")
        ):
            assert sample.image_bytes in taught
        if sample.set in ("unseen", "holdout", "utility") and sample.modality == "multimodal":
            assert sample.image_bytes not in taught
    assert {s.entity_id for s in data.samples if s.set == "unseen"} == {
        *data.entities["forget"],
        *data.entities["retain"],
    }
    for entity in data.entities["forget"]:
        pictures = {s.image_bytes for s in data.samples if s.set == "unseen" and s.entity_id == entity} - {
            None
        }
        assert len(pictures) == 2  # every unseen picture is used


def test_sentences_come_with_a_paraphrase_and_three_wrong_answers(data):
    for sample in data.samples:
        if sample.task == "generation":
            assert len(set(sample.wrong_answers)) == 3
            assert len({sample.answer, sample.paraphrase, *sample.wrong_answers}) == 5
            words = sample.paraphrase.rsplit(" is ", 1)[0]
            assert all(wrong.startswith(f"{words} is ") for wrong in sample.wrong_answers)
        else:
            assert sample.paraphrase is sample.wrong_answers is None


# Files as published: no added columns, uneven counts, absent options.


@pytest.fixture
def published(folder, tmp_path):
    roots = tmp_path / "eval", tmp_path / "train"
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in (
        "eval/Holdout_Set",
        "eval/Perception_Test",
        "eval/Skills_Test",
        "train/Base_Data",
        "train/Skills_Train",
        "train/Strangers",
    ):
        shutil.rmtree(tmp_path / name)
    for file in tmp_path.rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns([c for c in ADDED if c in table.column_names]), file)
    return roots


ADDED = ("attributes", "paraphrases", "wrong_answers")


def change(file: Path, edit):
    table = pq.read_table(file)
    pq.write_table(pa.Table.from_pylist([edit(row) for row in table.to_pylist()], schema=table.schema), file)


def read(roots, policy="stop", fraction=0.1):
    bad_rows = BadRows(policy)
    selection = ForgetSelection(fraction)
    data = read_benchmark(roots[0].parent, name="mllmu", forget=selection, bad_rows=bad_rows)
    return dataclasses.replace(data, samples=list(data.samples))


def test_published_files_need_no_added_columns(published, data):
    plain = read(published)
    list(validated(plain.samples))
    assert {s.attribute for s in plain.samples} == {None}
    assert plain.entities["forget"] == data.entities["forget"]
    assert plain.entities["holdout"] == plain.entities["utility"] == []

    def counts(samples):
        people = [s for s in samples if s.split in ("forget", "retain") and s.set != "perception"]
        return Counter((s.set, s.modality) for s in people)

    assert counts(plain.samples) == counts(data.samples)
    assert sum(s.task == "name" for s in plain.samples if s.part == "train") == 80


def test_counts_and_options_may_be_uneven(published):
    eval_root, _ = published

    def edit(row):
        task = row["Classification_Task"]
        task["Image_Textual_Questions"] = task["Image_Textual_Questions"][:3]
        for question in task["Pure_Text_Questions"]:
            wrong = next(k for k in "ABCD" if k != question["Correct_Answer"])
            question["Options"][wrong] = None
        row["Mask_Task"] = None
        row["Generation_Task"][0]["Type"] = "Text_Only"
        row["biography"] = json.dumps({"Name: ": json.loads(row["biography"])["Name"] + " "})
        return row

    change(eval_root / "forget_10" / FILE, edit)
    change(eval_root / "Full_Set" / FILE, edit)
    rows = [s for s in read(published).samples if s.set == "forget"]
    assert Counter((s.task, s.modality) for s in rows) == {
        ("choice", "multimodal"): 6, ("choice", "text"): 10,
        ("generation", "multimodal"): 2, ("generation", "text"): 6,
    }  # fmt: skip
    assert {len(s.options) for s in rows if s.task == "choice" and s.modality == "text"} == {3}


def test_several_files_of_the_test_set_are_all_read(published):
    folder = published[0] / "Test_Set"
    table = pq.read_table(folder / FILE)
    whole = read(published)
    pq.write_table(table.slice(0, 9), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(9), folder / "train-00001-of-00002.parquet")
    (folder / FILE).unlink()
    assert read(published) == whole


def test_additional_questions_count_and_empty_ones_do_not(published):
    _, train_root = published

    def edit(row):
        entries = [
            {"ID": row["ID"], "Question": "What is this person's pet?", "Answer": "cat"},
            {"Additional_ID": "1", "Additional_question": "Who is this person?", "Additional_answer": "Ann"},
            {"ID": row["ID"], "Question": "", "Answer": "nothing"},
        ]
        return row | {"metadata": json.dumps(entries)}

    change(train_root / "forget_10" / FILE, edit)
    rows = [s for s in read(published).samples if s.split == "forget" and s.part == "train"]
    assert Counter((s.task, s.modality) for s in rows) == {
        ("qa", "multimodal"): 8, ("qa", "text"): 8, ("name", "multimodal"): 8,
    }  # fmt: skip


def test_a_missing_folder_is_named(published):
    shutil.rmtree(published[0] / "Test_Set")
    with refusal("Test_Set", "parquet"):
        read(published)


def test_training_and_evaluation_must_agree_on_the_people(published):
    change(published[1] / "forget_10" / FILE, lambda row: row | {"ID": "777"})
    with refusal("forget people", "fictitious/"):
        read(published)


def test_a_wrong_letter_names_the_question(published):
    def edit(row):
        row["Classification_Task"]["Pure_Text_Questions"][0]["Correct_Answer"] = "E"
        return row

    change(published[0] / "forget_10" / FILE, edit)
    with refusal("forget_10", "ID 0", "'E'", "options"):
        read(published)


def test_bad_metadata_names_the_person(published):
    change(published[1] / "forget_10" / FILE, lambda row: row | {"metadata": "{not json"})
    with refusal("forget_10", "ID 0", "metadata", "JSON"):
        read(published)


def test_a_person_without_a_name_is_an_error(published):
    for folder in ("Full_Set", "forget_10", "retain_90", "Test_Set"):
        change(published[0] / folder / FILE, lambda row: row | {"biography": "{}"})
    with refusal("Full_Set", "Name", "biography"):
        read(published)
