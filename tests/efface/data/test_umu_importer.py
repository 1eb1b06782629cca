"""UMU-Bench's files become samples: Python literals in text, the key `muitimodal`, both forms of a fact."""

import shutil
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Features, Image, Value
from PIL import Image as Pictures

from efface.data.benchmarks import umu_importer
from efface.data.benchmarks.contract import BadRows, ForgetSelection
from efface.data.parquet import write_parquet
from efface.data.samples import validated
from efface.errors import DataError
from tests.efface.data.conftest import refusal

TEXTS = ("ID", "Biography", "MM_QA", "UM_QA", "Classify", "Cloze", "Generation")
FEATURES = Features({"image": Image(), **dict.fromkeys(TEXTS, Value("string"))})
FILE = "train-00000-of-00001.parquet"
PEOPLE = {"forget_5": ["007"], "retain_95": ["008", "009"], "real_person": ["001"]}


def row(identity: str) -> dict:
    """A row with the columns of the released files; every column but the picture is text."""
    name, out = f"Ada Stone-{identity}", BytesIO()
    Pictures.new("RGB", (16, 16), (int(identity), 90, 90)).save(out, format="PNG")
    options = {"A": "Nurse", "B": "Baker", "C": "Pilot", "D": "Clerk"}
    ask = "What is the {} of {}?".format
    forms = {"muitimodal": "this person in the image", "unimodal": name}
    contents = {
        "MM_QA": {
            "question": {"0": ask("job", "this person"), "1": ask("home", "this person")},
            "answer": {"0": f"{name}'s job is baker.", "1": f"{name} lives in Oslo."},
        },
        "UM_QA": {
            "question": {"0": ask("job", name), "1": ask("home", name)},
            "answer": {"0": f"{name}'s job is baker.", "1": f"{name} lives in Oslo."},
        },
        "Classify": {
            form: {"Occupation": {"question": ask("job", who), "options": options, "answer": "B. Baker"}}
            for form, who in forms.items()
        },
        "Cloze": {
            form: {"Residence": {"question": f"The home of {who} is [Blank].", "answer": "Oslo, Norway."}}
            for form, who in forms.items()
        },
        "Generation": {
            form: {"Interest": {"question": ask("interest", who), "answer": f"{name} enjoys chess."}}
            for form, who in forms.items()
        },
    }
    return {
        "image": {"bytes": out.getvalue(), "path": None},
        "ID": identity,
        "Biography": f"{{'Name': '{name}'}}",
        **{column: repr(content) for column, content in contents.items()},  # single quotes: no JSON
    }


def write(root: Path, folder: str, rows) -> None:
    write_parquet(rows, root / folder / FILE, FEATURES)


@pytest.fixture
def root(tmp_path) -> Path:
    for folder, people in PEOPLE.items():
        write(tmp_path / "data", folder, [row(identity) for identity in people])
    return tmp_path / "data"


def read(root: Path, fraction=0.05, policy="stop"):
    bad = BadRows(policy)
    data = umu_importer.read_benchmark(
        root.parent, name="umu", forget=ForgetSelection(fraction), bad_rows=bad
    )
    return data, list(data.samples), bad.left_out


def test_every_row_keeps_to_the_data_model_and_every_fact_is_a_pair(root):
    data, samples, left_out = read(root)
    assert len(list(validated(samples))) == len(samples) and left_out == []
    assert data.entities["forget"] == ["fictitious/007"] and data.entities["real"] == ["real/001"]
    kinds = Counter((s.split, s.part, s.task, s.modality) for s in samples)
    for modality in ("multimodal", "text"):
        assert kinds["forget", "train", "qa", modality] == 2 and kinds["retain", "train", "qa", modality] == 4
        for task in ("choice", "cloze", "generation"):
            assert kinds["forget", "test", task, modality] == 1
            assert kinds["real", "test", task, modality] == 1
    assert sum(kinds.values()) == 2 * (2 + 4) + 6 * 4  # real people are not taught
    pairs = Counter(s.pair_id for s in samples)
    assert set(pairs.values()) == {2}
    choice = next(s for s in samples if s.task == "choice" and s.modality == "text" and s.split == "forget")
    assert (choice.answer, choice.options) == ("Baker", ("Nurse", "Baker", "Pilot", "Clerk"))
    assert choice.question == "What is the job of Ada Stone-007?"


def test_the_table_is_the_same_for_every_share(root):
    for folder, people in {"forget_10": ["008"], "retain_90": ["007", "009"]}.items():
        write(root, folder, [row(identity) for identity in people])
    first, second = ([s.sample_id for s in read(root, share)[1]] for share in (0.05, 0.1))
    assert first == second


def test_the_folder_of_real_people_has_either_name(root):
    shutil.move(root / "real_person", root / "Real_Person_Set")
    assert len(umu_importer.files_to_import("data", root)) == 3
    assert read(root)[0].entities["real"] == ["real/001"]


BAD = {
    "ID": {"ID": ""},
    "Classify": {"Classify": "{'unimodal': {'x': {'question': 'q', 'options': {}, 'answer': 'E. no'}}}"},
    "Cloze": {"Cloze": "__import__('os').getcwd()"},
    "UM_QA": {"UM_QA": "{'question': {'0': 'q'}, 'answer': {}}"},
    "Generation": {"Generation": "not a literal"},
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_row_is_named_or_left_out(root, text):
    write(root, "retain_95", [row("008") | BAD[text], row("009")])
    with pytest.raises(DataError) as error:
        read(root)
    assert "retain_95" in str(error.value) and "row 0" in str(error.value) and text in str(error.value)
    data, samples, left_out = read(root, policy="skip")
    assert len(left_out) == 1 and data.entities["retain"] == ["fictitious/009"]
    assert {s.entity_id for s in samples if s.split == "retain"} == {"fictitious/009"}


def test_people_in_two_folders_missing_folders_and_columns_are_refused(root):
    with refusal("forget_10"):
        read(root, 0.1)
    write(root, "retain_95", [row("007"), row("009")])
    with refusal("007"):
        read(root)
    features = Features({name: kind for name, kind in FEATURES.items() if name != "Cloze"})
    rows = [{key: value for key, value in row("008").items() if key != "Cloze"}]
    write_parquet(rows, root / "retain_95" / FILE, features)
    with refusal("Cloze"):
        umu_importer.files_to_import("data", root)
    shutil.rmtree(root / "real_person")
    with refusal("real_person"):
        umu_importer.files_to_import("data", root)
    shutil.rmtree(root / "retain_95")
    with refusal("forget_5"):
        umu_importer.files_to_import("data", root)
