"""The deployed flow of requests: decisions in Prefect, events at an address, and a purge without delay."""

import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pandas as pd
import pytest

from tests.flows.project import PROJECT, end, make_project, until
from tests.flows.test_requests import REASON, splits, state_of

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(3600)]


@pytest.fixture
def receiver():
    """An HTTP server that remembers what was posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()


def open_fact(project, person) -> str:
    """A fact that the person's evaluation asks for by training pictures and by others, without options."""
    table = pd.read_parquet(
        project.folder / "data/prepared/samples.parquet",
        columns=["entity_id", "set", "part", "modality", "task", "attribute"],
    )
    rows = table[(table["entity_id"] == person) & (table["part"] == "test")]
    rows = rows[(rows["modality"] == "multimodal") & rows["task"].isin(["cloze", "generation"])]
    seen, unseen = (set(rows[rows["set"] == name]["attribute"]) for name in ("seen", "unseen"))
    return str(min(seen & unseen))


def test_decisions_events_and_a_purge_of_the_deployed_flow(tmp_path, receiver):
    address, posted = receiver
    gates = {"forget_at_most": 1.0, "retain_at_least": 0.0, "utility_at_least": 0.0}
    gates |= dict.fromkeys(("knowledge_at_most", "membership_at_most", "tpr_at_most", "neighbours_at_least"))
    project = make_project(
        tmp_path / "project", {f"requests.gates.{name}": limit for name, limit in gates.items()}
    )
    for name in ("prefect.yaml", "flows/pool.json"):
        (project.folder / name).write_text((PROJECT / name).read_text())
    project.run("dvc", "repro", "vanilla", "split", seconds=900)
    first, second, *_ = splits(project, "data")["entities"]["retain"]
    fact = open_fact(project, second)
    for name, *options in (("A", first), ("B", second, "--attribute", fact)):
        project.run("flows.requests", "add", "--id", name, "--subject", *options, *REASON)
        project.run("flows.requests", "confirm", name, "--reason", "a small model knows little")
    project.run("flows.requests", "withdraw", "B", "--reason", "later")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    api = f"http://127.0.0.1:{port}/api"
    options = {"cwd": project.folder, "stdin": subprocess.DEVNULL, "start_new_session": True}
    options["env"] = project.environment | {"PROJECT_ROOT": str(project.folder), "PREFECT_API_URL": api}
    prefect, processes = [sys.executable, "-m", "prefect"], []

    def up() -> bool:
        try:
            return httpx.get(f"{api}/health", timeout=2).status_code < 500
        except httpx.HTTPError:
            return False

    def state(run: str) -> str:
        return httpx.get(f"{api}/flow_runs/{run}").json()["state"]["name"]

    def resumed(run: str, decision: dict) -> bool:
        """Whether Prefect took the decision; its database may be busy."""
        return httpx.post(f"{api}/flow_runs/{run}/resume", json=decision, timeout=60).status_code == 201

    def start() -> str:
        (deployment,) = httpx.post(
            f"{api}/deployments/filter", json={"deployments": {"name": {"any_": ["requests"]}}}
        ).json()
        url = f"{api}/deployments/{deployment['id']}/create_flow_run"
        return str(httpx.post(url, json={"state": {"type": "SCHEDULED"}}).json()["id"])

    try:
        server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", port]
        processes.append(subprocess.Popen(server, **options))
        until(up, 280)
        project.environment = options["env"]
        for command in (
            ["work-pool", "create", "gpu", "--type", "process"],
            ["--no-prompt", "deploy", "--all"],
        ):
            subprocess.run([*prefect, *command], check=True, **options)
        project.run("flows.requests", "webhook", address)
        processes.append(subprocess.Popen([*prefect, "worker", "start", "--pool", "gpu"], **options))
        run = start()
        until(lambda: state(run) in ("Suspended", "Failed", "Crashed"), 900)
        assert state(run) == "Suspended"
        assert state_of(project, "A")["status"] == "candidate"
        until(lambda: {"request": "A", "status": "candidate"} in posted, 60)
        tables = httpx.post(f"{api}/artifacts/filter", json={}).json()
        text = next(table["data"] for table in tables if table["key"] == "request-approval")
        assert "| forget | A |" in text and "0001-A.html" in text and first not in text
        decision = {"run_input": {"approve": True, "reason": "looks well"}}
        until(lambda: resumed(run, decision), 60)
        until(lambda: state(run) in ("Completed", "Failed", "Crashed"), 300)
        assert state(run) == "Completed" and state_of(project, "A")["status"] == "done"

        # A late request that fails a gate: two events.
        (project.folder / "data/requests/B.yaml").write_text(
            project.read("data/requests/B.yaml")
            .replace(REASON[-1], "2026-01-02")
            .replace(project.read("data/requests/B.yaml").split("received: ")[1].split()[0], "2026-01-01")
        )
        project.run("flows.requests", "retry", "B")
        project.set({"requests.gates.retain_at_least": 99.0})
        run = start()
        until(lambda: state(run) in ("Completed", "Failed", "Crashed"), 900)
        assert state(run) == "Failed" and state_of(project, "B")["status"] == "needs-attention"
        for status in ("overdue", "needs-attention"):
            until(lambda status=status: {"request": "B", "status": status} in posted, 60)

        # A's people are purged with the next run; B, for one fact and tested in 8 bits, is declined.
        changes = {"gates.retain_at_least": 0.0, "purge_after_days": 0, "served_bits": 8}
        project.set({f"requests.{key}": value for key, value in changes.items()})
        project.run("flows.requests", "retry", "B")
        version, posted[:] = state_of(project, "A")["version"], []
        run = start()
        until(lambda: state(run) in ("Suspended", "Failed", "Crashed"), 1200)
        assert state(run) == "Suspended"
        assert state_of(project, "A")["status"] == "purged" and state_of(project, "A")["subjects"] == []
        assert first not in splits(project, "data")["entities"]["retain"]
        assert not (project.folder / "data/requests/A.yaml").exists()
        assert len(httpx.post(f"{api}/flow_runs/filter", json={}).json()) == 1, "this run alone is left"
        certificate = json.loads(project.read("data/requests/certificates/0003-B.json"))
        assert certificate["request"]["attributes"] == [fact]
        assert ("served", "B") in [(gate["name"], gate["about"]) for gate in certificate["gates"]]
        assert splits(project, f"{certificate['run']}/data")["attributes"] == {second: [fact]}
        decision = {"run_input": {"approve": False, "reason": "not now"}}
        until(lambda: resumed(run, decision), 60)
        until(lambda: state(run) in ("Completed", "Failed", "Crashed"), 300)
        assert state(run) == "Completed"
        assert state_of(project, "B")["status"] == "needs-attention"
        assert state_of(project, "B")["reasons"] == ["declined: not now"]
        until(lambda: {"request": "B", "status": "needs-attention"} in posted, 60)
        status = project.run("flows.requests", "status")
        assert re.search(rf"│ {version} +│[^│]+│ A +│ production", status) and "candidate" not in status
        assert "3 certificates hold" in project.run("flows.requests", "verify")
    finally:
        for process in reversed(processes):
            end(process)
