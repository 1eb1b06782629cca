"""The pinned versions give a Prefect server that starts and keeps its schedules."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A real server on a free port of this machine; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}/api"
    try:
        _until(lambda: _healthy(address), 120)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def _post(url: str, body: dict) -> Any:
    """The answer; a server whose database is busy is asked again, as Prefect's own client does."""
    end = time.monotonic() + 60
    while True:
        answer = httpx.post(url, json=body, timeout=30)
        if answer.status_code != 503 or time.monotonic() > end:
            return answer.raise_for_status().json()
        time.sleep(0.5)


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.3)


def test_a_cron_schedule_creates_runs(server):
    """With an SQLAlchemy that does not fit, everything works but this, in silence."""
    flow = _post(f"{server}/flows/", {"name": "pipeline"})
    deployment = _post(
        f"{server}/deployments/",
        {
            "name": "nightly",
            "flow_id": flow["id"],
            "schedules": [{"active": True, "schedule": {"cron": "0 2 * * *", "timezone": "UTC"}}],
        },
    )
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    def planned() -> list[dict]:
        return _post(f"{server}/flow_runs/filter", wanted)

    _until(lambda: len(planned()) > 0, 90)
    assert {run["state"]["name"] for run in planned()} == {"Scheduled"}


def test_the_project_deploys_as_prefect_yaml_says(server):
    environment = {**os.environ, "PREFECT_API_URL": server, "PROJECT_ROOT": str(PROJECT)}
    for command in (
        ["work-pool", "create", "gpu", "--type", "process"],
        ["--no-prompt", "deploy", "--all"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *command],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = httpx.get(f"{server}/deployments/name/pipeline/pipeline").raise_for_status().json()
    written = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"][0]
    assert found["entrypoint"] == written["entrypoint"]
    assert found["work_pool_name"] == "gpu"
    assert [(s["active"], s["schedule"]["cron"]) for s in found["schedules"]] == [(False, "0 2 * * *")]


def test_a_flow_reports_to_the_server(server, tmp_path):
    """Every stage is a task run with its state; the second look finds all of them Cached."""
    from tests.flows.test_whole_runs import make_copy

    copy = make_copy(tmp_path / "project")
    copy.environment["PREFECT_API_URL"] = server
    assert copy.flow("prepare") == {"benchmark": "ran", "prepare": "ran"}
    assert copy.flow("prepare") == {"benchmark": "cached", "prepare": "cached"}

    def states() -> list[tuple[str, str]]:
        runs = _post(f"{server}/task_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        return sorted((run["name"], run["state"]["name"]) for run in runs)

    expected = [(name, state) for name in ("benchmark", "prepare") for state in ("Cached", "Completed")]
    _until(lambda: states() == expected, 30)
    artifacts = _post(f"{server}/artifacts/filter", {})
    assert any("| prepare | cached |" in artifact["data"] for artifact in artifacts)
