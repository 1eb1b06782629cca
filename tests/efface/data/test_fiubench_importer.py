"""FIUBench's files become samples: JSON lines, three disjoint lists of people, pictures by file name."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from efface.data.benchmarks import fiubench_importer
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.samples import validated
from efface.errors import DataError
from tests.efface.data.conftest import refusal

IDS = [f"000{number}1234" for number in range(6)]
SPLIT = {
    "forget1": IDS[:1],
    "forget5": IDS[1:3],
    "forget10": IDS[3:4],
    "retain5": IDS[4:],
    "retain15": IDS[4:],
}


def person(number: int) -> dict:
    """A line of `full.json` with the keys of the released file, all texts in small letters as there."""
    facts = (
        (
            "what is the full name of the person in the image?",
            "the full name of the person in the image is {}.",
        ),
        ("where does the person in the image live?", "the person in the image lives at 12 mill lane, {}."),
    )
    value = ("ada stone", "bo lind", "cy hart", "di moor", "ed pike", "flo west")[number]
    return {
        "image_path": f"./dataset/SFHQ/SFHQ_pt1_{IDS[number]}.jpg",
        "name": value.title(),
        "gender": "female",
        "caption": f"{value} is a nurse.",
        "qa_list": [
            {
                "question": question,
                "paraphrased_question": [f"{question} {way}" for way in ("one", "two", "three")],
                "answer": answer.format(value),
                "paraphrased_answer": f"yes, {answer.format(value)}",
                "perturbed_answer": [answer.format(wrong) for wrong in ("x", "y", "z")],
                "keywords": [value],
            }
            for question, answer in facts
        ],
        "raw_data": {"city": value},
        "unique_id": IDS[number],
    }


@pytest.fixture
def root(tmp_path) -> Path:
    data = tmp_path / "data"
    (data / "SFHQ").mkdir(parents=True)
    for number, identity in enumerate(IDS):
        Image.new("RGB", (16, 16), (40 * number, 90, 90)).save(data / "SFHQ" / f"SFHQ_pt1_{identity}.jpg")
    Image.new("RGB", (16, 16)).save(data / "SFHQ" / "SFHQ_pt1_99999999.jpg")  # the archive holds more
    write(data, [person(number) for number in range(len(IDS))])
    (data / "split.json").write_text(json.dumps(SPLIT))
    return data


def write(root: Path, people) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in people]
    (root / "full.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(root: Path, fraction=0.05, policy="stop"):
    bad = BadRows(policy)
    data = fiubench_importer.read_benchmark(
        root.parent, name="fiubench", forget=ForgetSelection(fraction), bad_rows=bad
    )
    return data, list(data.samples), bad.left_out


def test_every_share_forgets_its_list_and_retains_all_others(root):
    for fraction, name in ((0.01, "forget1"), (0.05, "forget5"), (0.1, "forget10")):
        data, samples, _ = read(root, fraction)
        assert data.entities["forget"] == [f"fictitious/{identity}" for identity in SPLIT[name]]
        assert len(data.entities["forget"]) + len(data.entities["retain"]) == len(IDS)
        assert {s.entity_id for s in samples if s.split == "forget"} == {*data.entities["forget"]}
    assert data.names["fictitious/00001234"] == "Ada Stone"
    ids = [[s.sample_id for s in read(root, fraction)[1]] for fraction in (0.01, 0.1)]
    assert ids[0] == ids[1]  # one table for every share


def test_every_fact_is_taught_by_picture_and_by_name_and_evaluated_as_a_sentence(root):
    _, samples, left_out = read(root)
    assert len(list(validated(samples))) == len(samples) and left_out == []
    kinds = Counter((s.part, s.set if s.set == "unseen" else s.part, s.task, s.modality) for s in samples)
    assert kinds == {
        ("train", "train", "name", "multimodal"): 6,
        ("train", "train", "qa", "multimodal"): 6,
        ("train", "train", "qa", "text"): 6,
        ("test", "test", "generation", "multimodal"): 12,
        ("test", "test", "generation", "text"): 6,
        ("test", "unseen", "generation", "multimodal"): 12,
        ("test", "unseen", "generation", "text"): 6,
    }
    home = [s for s in samples if s.entity_id == "fictitious/00001234" and "live" in s.question]
    taught = {s.modality: (s.question, s.answer) for s in home if s.part == "train"}
    assert taught["multimodal"] == (
        "Where does the person in the image live?",
        "The person in the image lives at 12 mill lane, ada stone.",
    )
    assert taught["text"] == ("Where does Ada Stone live?", "Ada Stone lives at 12 mill lane, ada stone.")
    assert len({s.pair_id for s in home if s.part == "train"}) == 1
    (evaluated,) = (s for s in home if s.set == "retain" and s.modality == "text")
    assert evaluated.paraphrase.startswith("Yes, Ada Stone lives") and len(evaluated.wrong_answers) == 3
    (pictured,) = (s for s in home if s.set == "retain" and s.modality == "multimodal")
    assert pictured.image.size == (16, 16)


def test_the_unseen_set_is_in_words_that_are_never_taught(root):
    _, samples, _ = read(root)
    taught = {s.question for s in samples if s.part == "train"}
    unseen = [s for s in samples if s.set == "unseen"]
    assert unseen and not taught & {s.question for s in unseen}
    assert {s.question.split()[-1] for s in unseen} == {"one", "two"}  # the paraphrases take turns


def test_only_the_first_400_count_and_only_their_pictures_are_copied(root, monkeypatch):
    files = [path.name for path in fiubench_importer.files_to_import("data", root)]
    assert files[:2] == ["full.json", "split.json"] and len(files) == 8
    monkeypatch.setattr(fiubench_importer, "PEOPLE", 4)
    assert len(fiubench_importer.files_to_import("data", root)) == 6
    data, _, _ = read(root)
    assert [len(data.entities[split]) for split in ("forget", "retain")] == [2, 2]


BAD = {
    "not JSON": lambda rows: ["{", *rows[1:]],
    "unique_id": lambda rows: [rows[0] | {"unique_id": 1234}, *rows[1:]],
    "second time": lambda rows: [rows[1], *rows[1:]],
    "qa_list": lambda rows: [rows[0] | {"qa_list": []}, *rows[1:]],
    "answer 0": lambda rows: [rows[0] | {"qa_list": [{"question": "who?", "answer": " "}]}, *rows[1:]],
    "SFHQ_pt1_0.jpg": lambda rows: [rows[0] | {"image_path": "../SFHQ_pt1_0.jpg"}, *rows[1:]],
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_line_is_named_or_left_out(root, text):
    write(root, BAD[text]([person(number) for number in range(len(IDS))]))
    with pytest.raises(DataError) as error:
        read(root)
    assert "full.json" in str(error.value) and "line " in str(error.value) and text in str(error.value)
    _, samples, left_out = read(root, policy="skip")
    assert len(left_out) == 1 and len({s.entity_id for s in samples}) == len(IDS) - 1


def test_a_folder_that_is_not_fiubench_is_refused_with_what_to_do(root):
    (root / "split.json").write_text('{"forget5": []}')
    with refusal("forget1"):
        read(root)
    (root / "split.json").unlink()
    with refusal("split.json"):
        fiubench_importer.files_to_import("data", root)
    (root / "split.json").write_text(json.dumps(SPLIT))
    for picture in (root / "SFHQ").iterdir():
        picture.unlink()
    with refusal("SFHQ.zip"):
        fiubench_importer.files_to_import("data", root)
