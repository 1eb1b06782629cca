"""The stage attack end to end on a tiny model: every attack, retrained beside it, tables and record."""

import json

import pandas as pd
import pytest
import torch

from efface.data.samples import write_samples
from efface.models import save_model
from tasks.artifacts import write_json
from tasks.attack import run
from tasks.params import load_params
from tests.efface.conftest import PEOPLE, sample
from tests.efface.conftest import model as model
from tests.efface.conftest import processor as processor


@pytest.fixture
def root(tmp_path, model, processor):
    folder = tmp_path / "data"
    rows = []
    for i in range(3):
        about = {"split": "forget"}
        rows.append(sample(i, **about))
        for pictured in (True, False):
            changes = {"part": "test", "set": "forget", "sample_id": f"test-{i}-{pictured}"}
            rows.append(sample(i, pictured=pictured, **about, **changes))
    (folder / "prepared").mkdir(parents=True)
    write_samples(rows, folder / "prepared" / "samples.parquet")
    names = {f"fictitious/{i:03d}": PEOPLE[i] for i in range(3)}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": {}, "names": names}
    write_json(folder / "prepared" / "splits.json", splits)
    for place in ("vanilla", "retrained", "unlearned/npo"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        (folder / "models" / place).mkdir(parents=True)
        save_model(model, processor, folder / "models" / place)
    return folder


def few_steps(params):
    short = params.attack.relearn.model_copy(update={"budgets": [0, 2]})
    return params.model_copy(update={"attack": params.attack.model_copy(update={"relearn": short})})


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("quantize", ["none", "8 bits", "4 bits"]),
        ("module_reload", ["none", "projector", "vision"]),
        ("cross_modal", ["none", "name_in_question", "name_in_picture"]),
        ("image_shift", ["none", "crop", "noise", "grey", "rotate"]),
        ("relearn", ["0 steps", "2 steps"]),
    ],
)
def test_an_attack_scores_the_model_and_retrained_the_same_way(root, capsys, name, variants):
    run(few_steps(load_params()), name, "npo", root)
    table = pd.read_parquet(root / "attacks" / f"{name}@npo.parquet")
    for who in ("npo", "retrained"):
        assert list(dict.fromkeys(table.loc[table["model"] == who, "variant"])) == variants
    asked = table.groupby(["model", "variant"])["sample_id"].agg(tuple).unstack("model")
    assert (asked["npo"] == asked["retrained"]).all()
    people = 2 if name == "relearn" else 3
    assert table.loc[table["variant"] == variants[0], "entity_id"].nunique() == people
    written = json.loads((root / "attacks" / f"{name}@npo.json").read_text())
    assert len(written["results"]) == 2 * len(variants)
    assert (root / "runs" / f"attack@{name}-npo.json").is_file()
    assert capsys.readouterr().out.count("attack: ") == len(variants)
