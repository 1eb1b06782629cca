"""A finished result of a few models, and an empty MLflow database beside it."""

import json
import shutil

import pytest

from tasks.tracking.client import create_database
from tests.study_results import small_study


@pytest.fixture(scope="session")
def result_template(tmp_path_factory):
    root = small_study(tmp_path_factory.mktemp("result") / "data")
    (root / "report").mkdir()
    (root / "report" / "index.html").write_text("<h1>Report</h1>")
    effects = {"mmunlearner": {"kept": {"facts": {"value": 0.75}}, "worst": 0.5}}
    parts = {"forget": 0.9, "text": 1.0, "retain": 0.5, "utility": 0.75}
    score = {"value": 70.5, "low": 60.0, "high": None, **parts}
    lines = {
        "mmunlearner": {"attack_gap": 0.25, "attack_interval": [0.0, 0.5], "score": {"visual": score}},
        "manu": {"attack_gap": None, "score": {}, "score_exact_match": {"full": {"value": 40.0}}},
    }
    (root / "report" / "scores.json").write_text(json.dumps({"side_effects": effects, "models": lines}))
    (root / "report" / "summary.md").write_text("### Summary")
    create_database(root.parent / "mlflow.db")  # takes seconds, so tests copy it
    return root


@pytest.fixture
def root(result_template, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("EFFACE_FLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(result_template.parent / "mlflow.db", tmp_path)
    return shutil.copytree(result_template, tmp_path / "data")
