"""The stage attack end to end on a tiny model: every attack in one run, tables, record and what it says."""

import json

import pandas as pd
import pytest
import torch

from efface.attacks.outcomes import attack_outcomes
from efface.data.samples import write_samples
from efface.models import save_model
from tasks.attack import run
from tasks.config import load_params
from tasks.runtime.artifacts import write_json
from tests.efface.conftest import PEOPLE, sample
from tests.efface.conftest import model as model
from tests.efface.conftest import processor as processor

VARIANTS = {
    "none": ["none"],
    "reword": ["wording 1", "wording 2"],
    "in_context": ["examples"],
    "probe": [f"{kind}, layer {layer}" for kind in ("linear", "logit lens") for layer in (1, 2)],
    "soft_prompt": ["0 steps", "2 steps"],
    "benign_relearn": ["2 steps"],
    "relearn": ["0 steps", "2 steps"],
    "quantize": ["8 bits", "4 bits"],
    "module_reload": ["projector", "vision"],
    "cross_modal": ["name_in_question", "name_in_picture"],
    "image_shift": ["crop", "noise", "grey", "rotate"],
}


@pytest.fixture
def root(tmp_path, model, processor):
    return make_project(tmp_path / "data", model, processor, people=3)


def make_project(folder, model, processor, *, people):
    rows = []
    for i in range(people):
        about = {"split": "forget"}
        rows.append(sample(i, **about))
        for pictured in (True, False):
            changes = {"part": "test", "set": "forget", "task": "cloze", "sample_id": f"test-{i}-{pictured}"}
            rows.append(sample(i, pictured=pictured, **about, **changes))
    for i in range(4, 4 + people):  # they share the colours of the people to forget
        rows.append(sample(i, split="retain"))
        for pictured in (True, False):
            changes = {"part": "test", "set": "retain", "task": "cloze", "sample_id": f"test-{i}-{pictured}"}
            rows.append(sample(i, pictured=pictured, split="retain", **changes))
    (folder / "prepared").mkdir(parents=True)
    write_samples(rows, folder / "prepared" / "samples.parquet")
    names = {f"fictitious/{i:03d}": PEOPLE[i] for i in range(people)}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": {}, "names": names}
    write_json(folder / "prepared" / "splits.json", splits)
    for place in ("base", "vanilla", "retrained", "unlearned/npo"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        (folder / "models" / place).mkdir(parents=True)
        save_model(model, processor, folder / "models" / place)
    return folder


def few_steps(*attacks):
    params = load_params()
    changes = {
        name: getattr(params.attack, name).model_copy(update={"budgets": budgets})
        for name, budgets in (("relearn", [0, 2]), ("soft_prompt", [0, 2]), ("benign_relearn", [2]))
    }
    changes["run"] = list(attacks or [name for name in VARIANTS if name != "none"])
    return params.model_copy(update={"attack": params.attack.model_copy(update=changes)})


def table_of(root, label):
    return pd.read_parquet(root / "attacks" / f"{label}.parquet")


def test_one_run_makes_every_variant_and_is_compared_to_retrained(root, capsys):
    run(few_steps(), "npo", root)
    assert "python -m tasks attack retrained" in capsys.readouterr().out
    table = table_of(root, "npo")
    variants = table.groupby("attack", sort=False)["variant"].agg(lambda names: list(dict.fromkeys(names)))
    assert variants.to_dict() == VARIANTS
    assert set(table["model"]) == {"npo"} and set(table["benchmark"]) == {"avatars"}
    people = table.groupby("attack")["entity_id"].nunique()
    held_out = ["relearn", "soft_prompt"]
    assert set(people[held_out]) == {2} and set(people.drop(held_out)) == {3}
    budgets = table.groupby(["attack", "variant"])["budget"].first().dropna()
    steps = {"0 steps": 0, "2 steps": 2}
    assert {attack: budgets[attack].to_dict() for attack in held_out} == dict.fromkeys(held_out, steps)
    assert len(budgets) == 5 and budgets["benign_relearn"].to_dict() == {"2 steps": 2}
    at_0 = [table[(table["attack"] == attack) & (table["budget"] == 0)] for attack in held_out]
    plain = table[(table["attack"] == "none") & table["sample_id"].isin(at_0[0]["sample_id"])]
    for rows in at_0:  # a budget of 0 is the model as it is
        assert list(rows["nll_gold"]) == pytest.approx(list(plain["nll_gold"]), rel=1e-4)
    written = json.loads((root / "attacks" / "npo.json").read_text())
    assert [(r["attack"], r["variant"]) for r in written["results"]] == [
        (attack, variant) for attack in variants.index for variant in VARIANTS[attack]
    ]
    assert written["rows"] == len(table)
    assert list(written["unavailable"]) == ["in_context, hints"]  # one fact a person
    assert set(written["floors"]) == set(VARIANTS["probe"])
    assert all(floor["chance"] == pytest.approx(1 / 3) for floor in written["floors"].values())
    assert not any("seconds" in result for result in written["results"])  # equal attacks, equal files
    record = json.loads((root / "runs" / "attack@npo.json").read_text())
    assert set(record["inputs"]) == {"prepared", "split", "model", "vanilla", "base"}
    assert set(record["summary"]["seconds"]) == set(VARIANTS)
    assert list((root / "checkpoints" / "attack@npo").iterdir()) == []

    run(few_steps(), "retrained", root)
    run(few_steps(), "npo", root)
    printed = capsys.readouterr().out
    assert printed.count("from retrained") == sum(map(len, VARIANTS.values())) + 1
    assert "npo, after the worst attack: " in printed
    outcomes = attack_outcomes(table_of(root, "npo"), table_of(root, "retrained"))
    assert all(outcome.gap() is not None for outcome in outcomes)


def test_attacked_again_the_same_comes_out_and_finished_batches_are_not_scored_again(root, monkeypatch):
    from efface.evaluation import scoring

    params, whole = few_steps("quantize"), scoring.Scorer.answers
    run(params, "npo", root)
    first = table_of(root, "npo")
    counted = []

    def stopping(self, samples):
        if len(counted) == 3:
            raise KeyboardInterrupt
        counted.append(len(samples))
        return whole(self, samples)

    monkeypatch.setattr(scoring.Scorer, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(params, "npo", root)
    monkeypatch.setattr(
        scoring.Scorer, "answers", lambda self, s: (counted.append(len(s)), whole(self, s))[1]
    )
    run(params, "npo", root)
    assert len(counted) == 6  # pictures and text, three variants: none twice
    pd.testing.assert_frame_equal(table_of(root, "npo"), first)


def test_an_attack_that_needs_more_people_is_reported_and_the_others_run(tmp_path, model, processor, capsys):
    root = make_project(tmp_path / "data", model, processor, people=1)
    run(few_steps("relearn", "soft_prompt", "probe", "quantize"), "npo", root)
    assert set(table_of(root, "npo")["attack"]) == {"none", "quantize"}
    written = json.loads((root / "attacks" / "npo.json").read_text())
    assert "two or more people" in written["unavailable"]["relearn"]
    assert set(written["unavailable"]) == {"relearn", "soft_prompt", "probe"}
    assert "npo, relearn: not available" in capsys.readouterr().out


def test_prompts_a_model_has_no_words_for_are_named_and_those_it_has_are_put(root):
    """The tiny model knows its questions' words alone, and the user's lists keep to them."""
    params, attacks = (
        few_steps("jailbreak", "language", "typographic"),
        ("jailbreak", "language", "typographic"),
    )
    run(params, "npo", root)
    written = json.loads((root / "attacks" / "npo.json").read_text())
    assert set(written["unavailable"]) == set(attacks) and set(table_of(root, "npo")["attack"]) == {"none"}
    assert "attack.language.lists" in written["unavailable"]["language"]
    assert "base.source" in written["unavailable"]["jailbreak"]
    question = "Which colour does this person like?"
    section = params.attack
    changes = {
        "jailbreak": section.jailbreak.model_copy(
            update={"prompts": {"mine": "this person like {question}"}}
        ),
        "language": section.language.model_copy(update={"lists": {"swapped": {question: "colour Which?"}}}),
    }
    run(params.model_copy(update={"attack": section.model_copy(update=changes)}), "npo", root)
    asked = table_of(root, "npo").query("modality == 'multimodal'").groupby("attack")["question"].unique()
    assert asked["language"].tolist() == ["colour Which?"]
    assert asked["jailbreak"].tolist() == [f"this person like {question}"]


def test_an_interrupted_attack_does_not_probe_again(root, monkeypatch):
    from efface.attacks import probe as probes
    from efface.evaluation import scoring

    params, whole, calls = few_steps("probe", "quantize"), probes.probe, []
    monkeypatch.setattr(probes, "probe", lambda *a, **k: (calls.append(a), whole(*a, **k))[1])
    answers = scoring.Scorer.answers

    def stopping(self, samples):
        if calls:
            raise KeyboardInterrupt
        return answers(self, samples)

    monkeypatch.setattr(scoring.Scorer, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(params, "npo", root)
    monkeypatch.setattr(scoring.Scorer, "answers", answers)
    run(params, "npo", root)
    assert len(calls) == 2  # the model and base, once each
    assert set(table_of(root, "npo")["attack"]) == {"none", "probe", "quantize"}
