"""A study in MLflow: a parent with the comparison, and below it one run per model of every cell, once."""

import json
import shutil

import pytest
from mlflow.tracking import MlflowClient

from tasks.tracking.client import create_database
from tasks.tracking.runs import study_payload, track
from tests.study_results import small_study

MODELS = ("base", "vanilla", "retrained", "mmunlearner")


@pytest.fixture
def cells(tmp_path):
    small_study(tmp_path / "one" / "data", models=MODELS)
    (tmp_path / "two").mkdir()
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "two" / "data")
    world = {"seed": 0, "fraction": 0.1, "method": None, "variant": "reference models"}
    method = world | {"method": "mmunlearner", "variant": "mmunlearner, epochs 3"}
    return {
        "seed 0: reference models": world | {"folder": str(tmp_path / "one")},
        "seed 0: mmunlearner, epochs 3": method | {"folder": str(tmp_path / "two")},
    }


def test_every_model_of_every_cell_is_a_run_below_the_study(cells, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>Study</h1>")
    (folder / "summary.md").write_text("### Summary")
    number = {"mean": 0.25, "interval": None, "seeds": [0.25]}
    line = {"fraction": 0.1, "model": "mmunlearner", "numbers": {"forget, picture": number}}
    (folder / "results.json").write_text(json.dumps({"goal": "visual", "lines": [line]}))
    create_database(tmp_path / "mlflow.db")
    for _ in range(2):
        track(study_payload(cells, folder), "efface-avatars", tmp_path)
    output = capsys.readouterr().out
    assert "sent 5 runs, 1 reports" in output and "nothing new; study-" in output

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("efface-avatars").experiment_id])
    (parent,) = (run for run in runs if run.data.tags["efface.role"] == "study")
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {
        *(f"seed 0: reference models, {model}" for model in MODELS[:3]),
        "seed 0: mmunlearner, epochs 3",
    }
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    assert parent.data.metrics == {"0.1/mmunlearner/forget picture": 0.25}
    assert parent.data.params == {"study.goal": "visual", "study.seeds": "0"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "report")} >= {
        "report/index.html"
    }
    child = children["seed 0: mmunlearner, epochs 3"]
    assert child.data.params["study.variant"] == "mmunlearner, epochs 3"
    scores = json.loads((tmp_path / "two" / "data" / "scores" / "mmunlearner.json").read_text())
    exact = scores["metrics"]["forget"]["multimodal"]["exact_match"]["value"]
    assert child.data.metrics["forget/multimodal/exact_match"] == exact
