"""The stage unlearn on a tiny model: what it writes when it ends well, early, in divergence, with LoRA."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from efface.data.samples import read_samples, write_samples
from efface.errors import ArtifactError, DataError
from efface.subject_hashes import subject_hash
from tasks import retain_statistic, unlearn
from tasks.config import load_params
from tasks.config.unlearning import Unlearn
from tasks.runtime.artifacts import digest
from tasks.runtime.salt import SALT_VARIABLE
from tests.efface.conftest import sample
from tests.tiny_project import make_root

PROJECT = Path(__file__).resolve().parents[2]
LORA = {
    "rank": 2,
    "alpha": 4.0,
    "dropout": 0.1,
    "components": ["language"],
    "keep_adapter": True,
    "quantization": None,
}
TRAINING = {
    "start": "vanilla",
    "mask": "none",
    "epochs": 2,
    "learning_rate": 1e-3,
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "max_grad_norm": 1.0,
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "retain_batches_per_forget_batch": 1,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from tests.efface.unlearning.training.program import tiny_model

    return make_root(tmp_path_factory.mktemp("data"), *tiny_model())


@pytest.fixture
def root(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "data"))


def params(methods, **shared):
    loaded = load_params(PROJECT / "params.yaml")
    section = loaded.unlearn.model_dump(mode="json") | {"batch_size": 2, "checkpoint_every": 1}
    return loaded.model_copy(
        update={"unlearn": Unlearn.model_validate(section | {"methods": methods} | shared)}
    )


def record_of(root, name):
    return json.loads((root / "runs" / f"unlearn@{name}.json").read_text())


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_method_can_start_from_the_model_of_another(root, capsys):
    methods = {
        "grad_diff": TRAINING,
        "npo": TRAINING | {"start": "unlearned/grad_diff", "beta": 0.1},
    }
    settings = params(methods)
    for name in methods:
        unlearn.run(settings, name, root=root)
    assert "unlearned/npo, 2 steps, finished, last forget loss" in capsys.readouterr().out
    record = record_of(root, "npo")
    assert record["summary"] == {"steps": 2, "stopped_by": None, "status": "finished"}
    assert record["inputs"]["start"] == record_of(root, "grad_diff")["outputs"]["grad_diff"]
    (checkpoint,) = (root / "checkpoints" / "unlearn@npo").iterdir()
    assert (checkpoint / "finished").is_file()
    one, two = (weights(root / "models" / "unlearned" / name) for name in methods)
    assert any(bool((one[key] != two[key]).any()) for key in one)


def test_the_folder_says_what_was_forgotten_and_the_same_run_says_the_same(root):
    settings = params({"grad_diff": TRAINING})
    unlearn.run(settings, "grad_diff", root=root)
    folder = root / "models" / "unlearned" / "grad_diff"
    card, whole = (folder / "README.md").read_text(encoding="utf-8"), digest(folder)
    record = record_of(root, "grad_diff")
    for identity in ("fictitious/000", "fictitious/001"):
        assert f"`{hashlib.sha256(identity.encode()).hexdigest()[:16]}`" in card and identity not in card
    assert "made to forget 2 people by `grad_diff`" in card and "| epochs | `2` |" in card
    assert record["inputs"]["start"] in card and "data/runs/unlearn@grad_diff.json" in card
    assert "# grad_diff" in card and "runs/unlearn@grad_diff.json" in card
    assert "| model | goal |" not in card and "## Limits" in card
    shutil.rmtree(folder)
    unlearn.run(settings, "grad_diff", root=root)
    assert digest(folder) == whole == record["outputs"]["grad_diff"]


def test_the_folder_hashes_people_with_the_key_of_the_certificates(root, monkeypatch):
    key = "k" * 32
    monkeypatch.setenv(SALT_VARIABLE, key)
    unlearn.run(params({"grad_diff": TRAINING}), "grad_diff", root=root)
    card = (root / "models" / "unlearned" / "grad_diff" / "README.md").read_text(encoding="utf-8")
    for identity in ("fictitious/000", "fictitious/001"):
        assert f"- `{subject_hash(identity, key.encode())}`\n" in card
        assert hashlib.sha256(identity.encode()).hexdigest()[:16] not in card
    assert "HMAC-SHA256" in card and "without a key" not in card and key not in card


def test_lora_leaves_a_plain_model_and_saves_the_factors_on_request(root):
    from efface.models import load_model

    unlearn.run(params({"npo": TRAINING | {"beta": 0.1}}, lora=LORA), "npo", root=root)
    folder, before = root / "models" / "unlearned" / "npo", weights(root / "models" / "vanilla")
    after = weights(folder)
    assert after.keys() == before.keys()
    changed = {key for key in before if bool((before[key] != after[key]).any())}
    assert changed and all("language_model" in key for key in changed)
    assert (folder / "adapter" / "adapter_config.json").is_file()
    load_model(folder)
    assert record_of(root, "npo")["params"]["lora"] == LORA


def test_the_system_prompt_gives_a_model_folder(root, capsys):
    from efface.encoding import prompt_of
    from efface.models import load_model

    entry = {"start": "vanilla", "mask": "none", **{"instruction": "Say red."}}
    unlearn.run(params({"system_prompt": entry}, lora=LORA), "system_prompt", root=root)
    folder = root / "models" / "unlearned" / "system_prompt"
    assert prompt_of(load_model(folder).processor, "Who?", image=False).startswith("Say red.\nUSER: Who?")
    before, after = weights(root / "models" / "vanilla"), weights(folder)
    assert all(bool((before[key] == after[key]).all()) for key in before)
    assert "0 steps" in capsys.readouterr().out


def test_a_stop_rule_ends_well_and_is_recorded(root):
    stop = {"forget_loss": 1e-3, "retain_rise": None}
    unlearn.run(params({"grad_diff": TRAINING}, stop=stop), "grad_diff", root=root)
    summary = record_of(root, "grad_diff")["summary"]
    assert summary["steps"] == 1 and summary["stopped_by"].endswith("> 0.001 at step 1")
    assert summary["status"] == f"stopped by {summary['stopped_by']}"


def test_a_curve_is_recorded_from_the_start_to_the_last_step_and_changes_no_weight(root):
    unlearn.run(params({"grad_diff": TRAINING}), "grad_diff", root=root)
    plain = weights(root / "models" / "unlearned" / "grad_diff")
    assert "curve" not in record_of(root, "grad_diff")["summary"]
    curve = {"every": 2, "questions": 3}
    with pytest.raises(DataError) as error:
        unlearn.run(params({"grad_diff": TRAINING}, curve=curve), "grad_diff", root=root)
    assert "unlearn.curve" in str(error.value) and "forget" in str(error.value)
    table = root / "prepared" / "samples.parquet"
    facts = [sample(i, pictured=pictured) for i in range(8) for pictured in (True, False)]
    questions = [
        sample(i, part="test", set="forget" if i < 2 else "retain", sample_id=f"t{i}-{task}", task=task)
        for i in range(8)
        for task in ("qa", "generation")
    ]
    write_samples([*facts, *questions], table)
    unlearn.run(params({"grad_diff": TRAINING | {"epochs": 3}}, curve=curve), "grad_diff", root=root)
    points = record_of(root, "grad_diff")["summary"]["curve"]
    assert [point["step"] for point in points] == [0, 2, 3]
    assert all(0 <= point[key] <= 1 for point in points for key in ("forget_known", "retain_known"))
    unlearn.run(params({"grad_diff": TRAINING}, curve=curve), "grad_diff", root=root)
    watched = weights(root / "models" / "unlearned" / "grad_diff")
    assert all(bool((plain[key] == watched[key]).all()) for key in plain)


def test_divergence_is_recorded_and_leaves_the_last_good_checkpoint(root, monkeypatch):
    from efface.unlearning import METHODS
    from efface.unlearning.training.config import DivergenceError

    calls = 0

    def breaking(*args):
        nonlocal calls
        calls += 1
        term = METHODS["gradient_ascent"].forget_loss(*args)
        return term if calls < 2 else dataclasses.replace(term, loss=term.loss * float("nan"))

    changed = dataclasses.replace(METHODS["grad_diff"], forget_loss=breaking)
    monkeypatch.setitem(METHODS, "grad_diff", changed)
    with pytest.raises(DivergenceError) as error:
        unlearn.run(params({"grad_diff": TRAINING}), "grad_diff", root=root)
    assert "forget_loss is nan" in str(error.value)
    record = record_of(root, "grad_diff")
    assert record["summary"]["status"].startswith("diverged: forget_loss is nan at step 1 of 2")
    assert len(record["history"]) == 1 and record["outputs"] == {}
    assert not (root / "models" / "unlearned" / "grad_diff").exists()
    (checkpoint,) = (root / "checkpoints" / "unlearn@grad_diff").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 1


@pytest.mark.parametrize("retain_text", [False, True])
def test_text_facts_of_the_forget_people_join_the_retain_set(root, monkeypatch, retain_text):
    from efface.unlearning import unlearn as module

    retained, original = [], module.unlearn

    def watched(*args, **kwargs):
        retained.extend(kwargs["retain"])
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "unlearn", watched)
    unlearn.run(params({"grad_diff": TRAINING | {"retain_text": retain_text}}), "grad_diff", root=root)
    forget = [s for s in retained if s.split == "forget"]
    expected = read_samples(root / "prepared", split="forget", part="train", modality="text")
    assert [s.sample_id for s in forget] == ([s.sample_id for s in expected] if retain_text else [])
    assert expected and any(s.split == "retain" for s in retained)


def test_text_facts_are_forgotten_or_retained():
    with pytest.raises(ValueError) as error:
        params({"grad_diff": TRAINING | {"retain_text": True}}, forget=["multimodal", "text"])
    assert "methods.grad_diff.retain_text" in str(error.value)


def test_a_saved_statistic_stands_in_for_the_retain_set_of_its_model_alone(root):
    kvw = {"start": "vanilla", "gamma": 0.5}
    measured = params({"kvw": kvw | {"mask": "none"}, "grad_diff": TRAINING})
    unlearn.run(measured, "kvw", root=root)
    folder = root / "models" / "unlearned" / "kvw"
    expected = weights(folder)
    retain_statistic.run(measured, root=root)
    table = root / "prepared" / "samples.parquet"
    retained = {row.entity_id for row in read_samples(table.parent, split="retain")}
    write_samples([row for row in read_samples(table) if row.entity_id not in retained], table)
    saved = {"kvw": kvw | {"mask": "retain_statistic"}}
    unlearn.run(params(saved), "kvw", root=root)
    assert all(bool((weight == expected[key]).all()) for key, weight in weights(folder).items())
    assert {"start", "mask"} < record_of(root, "kvw")["inputs"].keys()
    shutil.copytree(folder, root / "models" / "unlearned" / "grad_diff")
    other = {"grad_diff": TRAINING, "kvw": saved["kvw"] | {"start": "unlearned/grad_diff"}}
    with pytest.raises(ArtifactError) as error:
        unlearn.run(params(other), "kvw", root=root)
    assert "retain_statistic.safetensors" in str(error.value) and "digest" in str(error.value)


@pytest.mark.parametrize("name", ["pava", "vl_eraser", "projected_diff", "mip_editor"])
def test_an_edit_with_a_training_inside_runs_and_says_what_it_selected(root, name):
    own = {"pava": {"layers": 1, "questions": ["Which colour does this person like?"]}}
    own |= {"vl_eraser": {"rank": 2, "energy": 0.9}, "mip_editor": {"layer": 1}, "projected_diff": {}}
    unlearn.run(params({name: TRAINING | own[name]}), name, root=root)
    record = record_of(root, name)
    assert record["summary"]["status"] == "finished" and record["summary"]["steps"] > 0
    assert ("details" in record["summary"]) == (name in ("pava", "mip_editor"))
    assert all(
        (folder / "finished").is_file() for folder in (root / "checkpoints" / f"unlearn@{name}").iterdir()
    )


def test_a_run_that_ended_before_dvc_stored_it_is_made_again_from_its_checkpoint(root, capsys):
    section = params({"npo": TRAINING})
    unlearn.run(section, "npo", root=root)
    folder = root / "models" / "unlearned" / "npo"
    first, steps = digest(folder), record_of(root, "npo")["history"]
    shutil.rmtree(folder)  # as DVC does before it runs a stage again
    unlearn.run(section, "npo", root=root)
    assert "resuming" in capsys.readouterr().err
    assert digest(folder) == first and record_of(root, "npo")["history"] == steps
