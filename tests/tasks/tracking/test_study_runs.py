"""A study in MLflow: a parent with the comparison, and below it one run per model of every cell, once."""

import json
import shutil

import pytest
from mlflow.tracking import MlflowClient

from tasks.studies.cells import Finished
from tasks.tracking.client import create_database
from tasks.tracking.runs import study_payload, track
from tests.study_results import small_study

MODELS = ("base", "vanilla", "retrained", "mmunlearner")


@pytest.fixture
def cells(tmp_path):
    small_study(tmp_path / "one", models=MODELS)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    return [
        Finished("seed 0, fold 0", 0, 0, None, MODELS[:3], tmp_path / "one"),
        Finished("seed 0, fold 1", 0, 1, None, MODELS[3:], tmp_path / "two"),
    ]


def test_every_model_of_every_cell_is_a_run_below_the_study(cells, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>Study</h1>")
    (folder / "summary.md").write_text("### Summary")
    lines = {"mmunlearner": {"numbers": {"forget, picture": {"mean": 0.25, "interval": None}}}}
    outcomes = [
        {"fold": [0, fold], "setting": None, "model": model, "numbers": numbers}
        for fold, model, numbers in (
            (0, "vanilla", {"score": 0.0}),
            (1, "vanilla", {"score": 1.0}),
            (1, "mmunlearner", {"score": 70.5, "forget": 0.9, "density": 0.5}),
        )
    ]
    results = {"goal": "visual", "lines": lines, "outcomes": outcomes}
    (folder / "results.json").write_text(json.dumps(results))
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
        *(f"seed 0, fold 0, {model}" for model in MODELS[:3]),
        "seed 0, fold 1, mmunlearner",
    }
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    assert parent.data.metrics == {"mmunlearner/forget picture": 0.25}
    assert parent.data.params == {"study.goal": "visual", "study.seeds": "0"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "report")} >= {
        "report/index.html"
    }
    child = children["seed 0, fold 1, mmunlearner"]
    assert child.data.params["study.fold"] == "1"
    scores = json.loads((tmp_path / "two" / "scores" / "mmunlearner.json").read_text())
    exact = scores["metrics"]["forget"]["multimodal"]["exact_match"]["value"]
    assert child.data.metrics["forget/multimodal/exact_match"] == exact
    scores = {
        name: {k: v for k, v in run.data.metrics.items() if k.startswith("study/")}
        for name, run in children.items()
    }
    assert scores["seed 0, fold 1, mmunlearner"] == {"study/score": 70.5, "study/forget": 0.9}
    assert scores["seed 0, fold 0, vanilla"] == {"study/score": 0.0}
