"""What a run leaves in Prefect: its table, and links that a browser can follow."""

import json
from pathlib import Path

import pytest

from flows import summary
from flows.summary import Row, mlflow_links, publish


@pytest.fixture
def track_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFACE_MLFLOW_PAGES", raising=False)

    def track(address: str) -> None:
        Path(".efface").mkdir(exist_ok=True)
        receipt = {"experiment": "3", "run": "abc", "at": address}
        Path(".efface/mlflow.json").write_text(json.dumps(receipt))

    return track


@pytest.mark.parametrize(
    ("address", "pages", "link"),
    [
        ("http://***@box:5000/", None, "http://box:5000/#/experiments/3/runs"),
        ("sqlite:////home/me/mlflow.db", None, "http://127.0.0.1:5000/#/experiments/3/runs"),
        ("http://box", "https://me:hush@pages.org/", "https://pages.org/#/experiments/3/runs"),
    ],
)
def test_the_run_is_linked_where_a_browser_can_see_it(track_at, monkeypatch, address, pages, link):
    assert mlflow_links() == {}
    track_at(address)
    if pages:
        monkeypatch.setenv("EFFACE_MLFLOW_PAGES", pages)
    addresses = {key: address for key, (_, address) in mlflow_links().items()}
    assert addresses["mlflow"] == f"{link}/abc?workflowType=machine_learning"
    assert addresses["models"].startswith(f"{link}?workflowType=machine_learning&viewStateShareKey=")


def test_a_damaged_receipt_costs_the_link_alone(track_at):
    track_at("http://box:5000")
    Path(".efface/mlflow.json").write_text("[]")
    assert mlflow_links() == {}


def test_artifacts_are_the_table_and_the_links(track_at, monkeypatch, capsys):
    artifacts: dict[str, object] = {}
    monkeypatch.setattr(
        summary, "create_table_artifact", lambda rows, key, description: artifacts.update({key: rows})
    )
    monkeypatch.setattr(
        summary, "create_link_artifact", lambda link, key, link_text: artifacts.update({key: link})
    )
    track_at("http://box:5000")
    publish([Row("prepare", "cached"), Row("report", "ran", 2.04)])
    assert artifacts["pipeline"] == [
        {"name": "prepare", "outcome": "cached", "seconds": 0.0},
        {"name": "report", "outcome": "ran", "seconds": 2.0},
    ]
    assert str(artifacts["pipeline-report"]).startswith(
        "http://box:5000/#/experiments/3/runs/abc/artifacts/report/index.html?"
    )
    assert "2 in all: 1 cached, 1 ran" in capsys.readouterr().out
