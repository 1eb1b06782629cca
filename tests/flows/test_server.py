"""The pinned versions give a Prefect server that starts and keeps its schedules."""

import pytest

from tests.flows.conftest import wait_until

pytestmark = pytest.mark.slow


def test_a_cron_schedule_creates_runs(server):
    """With an SQLAlchemy that does not fit, everything works but this, in silence."""
    flow = server.post("flows/", {"name": "made-up"})
    deployment = server.post(
        "deployments/",
        {
            "name": "nightly",
            "flow_id": flow["id"],
            "schedules": [{"active": True, "schedule": {"cron": "0 2 * * *", "timezone": "UTC"}}],
        },
    )
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    def planned() -> list[dict]:
        return server.post("flow_runs/filter", wanted)

    wait_until(lambda: len(planned()) > 0, 90)
    assert {run["state"]["name"] for run in planned()} == {"Scheduled"}


def test_a_flow_reports_to_the_server(server, tmp_path):
    """Every stage is a task run with its state; the second look finds all of them Cached."""
    from tests.flows.test_whole_runs import make_copy

    copy = make_copy(tmp_path / "project")
    copy.environment["PREFECT_API_URL"] = server.url
    before = {run["id"] for run in server.post("task_runs/filter", {})}
    assert copy.flow("prepare") == {"benchmark": "ran", "prepare": "ran"}
    assert copy.flow("prepare") == {"benchmark": "cached", "prepare": "cached"}

    def states() -> list[tuple[str, str]]:
        runs = [run for run in server.post("task_runs/filter", {}) if run["id"] not in before]
        return sorted((run["name"], run["state"]["name"]) for run in runs)

    expected = [(name, state) for name in ("benchmark", "prepare") for state in ("Cached", "Completed")]
    wait_until(lambda: states() == expected, 30)
    artifacts = server.post("artifacts/filter", {})
    assert any("| prepare | cached |" in artifact["data"] for artifact in artifacts)
