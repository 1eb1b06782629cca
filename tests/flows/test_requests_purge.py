"""When the deployed flow purges a request by itself."""

import pytest

from flows.requests.purge import due_purges, lines_of
from tasks.requests import purge
from tasks.requests.state import read_states, write_state
from tasks.runtime.artifacts import write_json
from tasks.tracking.client import create_database
from tests.requests_project import PEOPLE, make_project, params_with


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    database = tmp_path / "mlflow.db"
    create_database(database)
    project = make_project(tmp_path / "project", database, auto_promote=True)
    project.forget("A", PEOPLE[1])
    return project


def test_a_request_is_purged_after_its_grace_period(project):
    def due(days):
        params = params_with(auto_promote=True, purge_after_days=days)
        return due_purges(params, project.root, project.registry)

    state = read_states(project.root)["A"]
    assert due(None) == due(30) == []
    write_state(project.root, "A", state.model_copy(update={"time": "2026-01-01T00:00:00Z"}))
    assert due(None) == [] and due(30) == ["A"]
    write_state(
        project.root, "A", state.model_copy(update={"time": "2026-01-01T00:00:00Z", "status": "pending"})
    )
    write_json(project.root.parent / purge.JOURNAL, {"kind": "purge", "completed": False, "request": "B"})
    assert due(None) == ["B"], "an interrupted purge is completed first"


def test_with_a_grace_period_of_no_days_all_but_requests_for_some_facts_are_due(project):
    project.forget("B", PEOPLE[2], attributes=["pet"])
    params = params_with(auto_promote=True, purge_after_days=0)
    states = read_states(project.root)
    assert {name: state.status for name, state in states.items()} == {"A": "done", "B": "done"}
    assert due_purges(params, project.root, project.registry) == ["A"]


def test_a_plan_is_printed_place_by_place():
    deleted = {
        "project": ["data/x"],
        "DVC cache": {"objects": ["a"], "run_cache": 2},
        "MLflow": {"run": ["model"]},
    }
    lines = list(lines_of({"deleted": deleted, "kept": ["version 2"], "not_reached": ["git"]}))
    assert lines == [
        "delete in the project: data/x",
        "delete in DVC cache: 1 objects, 2 cached runs",
        "delete in MLflow: run: model",
        "kept: version 2",
        "not reached: git",
    ]
