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
            changes = {"part": "test", "set": "forget", "sample_id": f"test-{i}-{pictured}"}
            rows.append(sample(i, pictured=pictured, **about, **changes))
    (folder / "prepared").mkdir(parents=True)
    write_samples(rows, folder / "prepared" / "samples.parquet")
    names = {f"fictitious/{i:03d}": PEOPLE[i] for i in range(people)}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": {}, "names": names}
    write_json(folder / "prepared" / "splits.json", splits)
    for place in ("vanilla", "retrained", "unlearned/npo"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        (folder / "models" / place).mkdir(parents=True)
        save_model(model, processor, folder / "models" / place)
    return folder


def few_steps(*attacks):
    params = load_params()
    changes = {"relearn": params.attack.relearn.model_copy(update={"budgets": [0, 2]})}
    changes |= {"run": list(attacks)} if attacks else {}
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
    assert people["relearn"] == 2 and set(people.drop("relearn")) == {3}
    budgets = table.loc[table["attack"] == "relearn"].groupby("variant")["budget"].first()
    assert budgets.to_dict() == {"0 steps": 0, "2 steps": 2}
    assert table.loc[table["attack"] != "relearn", "budget"].isna().all()
    written = json.loads((root / "attacks" / "npo.json").read_text())
    assert [(r["attack"], r["variant"]) for r in written["results"]] == [
        (attack, variant) for attack in variants.index for variant in VARIANTS[attack]
    ]
    assert written["rows"] == len(table) and written["unavailable"] == {}
    record = json.loads((root / "runs" / "attack@npo.json").read_text())
    assert set(record["inputs"]) == {"prepared", "split", "model", "vanilla"}
    assert list((root / "checkpoints" / "attack@npo").iterdir()) == []

    run(few_steps(), "retrained", root)
    run(few_steps(), "npo", root)
    assert capsys.readouterr().out.count("from retrained") == sum(map(len, VARIANTS.values()))
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
    run(few_steps("relearn", "quantize"), "npo", root)
    assert set(table_of(root, "npo")["attack"]) == {"none", "quantize"}
    written = json.loads((root / "attacks" / "npo.json").read_text())
    assert "two or more people" in written["unavailable"]["relearn"]
    assert "npo, relearn: not available" in capsys.readouterr().out
