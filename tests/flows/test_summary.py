"""What a run leaves in Prefect: its table, links that a browser can follow, plots inside the text."""

import json
from pathlib import Path

import pytest

from flows import summary
from flows.summary import Row, links, plots


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFACE_MLFLOW_PAGES", raising=False)

    def at(address: str) -> None:
        Path(".efface").mkdir(exist_ok=True)
        receipt = {"experiment": "3", "run": "abc", "at": address}
        Path(".efface/mlflow.json").write_text(json.dumps(receipt))

    return at


def test_links_lead_to_the_server_that_has_the_result(tracked):
    assert links(summary.REPORT) == []
    tracked("http://***@box:5000/")
    (line,) = links(summary.REPORT)
    run = "http://box:5000/#/experiments/3/runs/abc"
    assert line == f"[Report]({run}/artifacts/report/index.html) and [all numbers in MLflow]({run})"
    assert links(Path("data/study/index.html")) == []


def test_a_result_in_a_local_database_is_linked_where_make_ui_shows_it(tracked, monkeypatch):
    tracked("sqlite:////home/me/efface/mlflow.db")
    assert "(http://127.0.0.1:5000/#/experiments/3/runs/abc)" in links(summary.REPORT)[0]
    monkeypatch.setenv("EFFACE_MLFLOW_PAGES", "https://me:hush-hush@mlflow.example.org/")
    assert "(https://mlflow.example.org/#/experiments/3/runs/abc)" in links(summary.REPORT)[0]


def test_a_damaged_receipt_costs_the_link_alone(tracked):
    tracked("http://box:5000")
    Path(".efface/mlflow.json").write_text("[]")
    assert links(summary.REPORT) == []


def test_plots_are_inside_the_text_unless_they_are_huge(tracked):
    summary.PLOTS.mkdir(parents=True)
    (summary.PLOTS / "forget_retain.svg").write_text("<svg/>")
    (summary.PLOTS / "picture_text.svg").write_text("x" * (1 << 20))
    assert plots() == ["![forget retain](data:image/svg+xml;base64,PHN2Zy8+)"]


def test_the_artifact_has_all_of_it(tracked, monkeypatch):
    made = {}
    monkeypatch.setattr(summary, "create_markdown_artifact", lambda **values: made.update(values))
    tracked("http://box:5000")
    rows = [Row("prepare", "cached"), Row("report", "ran", 2.0)]
    summary.publish(rows, notes=["pull: prepare from /mnt/share"])
    for part in ("| prepare | cached |", "pull: prepare from /mnt/share", "[Report](http://box:5000/"):
        assert part in made["markdown"]
    summary.publish([Row("report", "failed", 2.0)])
    assert "[Report]" not in made["markdown"]
