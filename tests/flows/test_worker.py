"""Deployed runs on a real server and worker: side by side, on schedule, killed, and through a power cut."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows.storage import REMOTE
from flows.watcher import MARK, marked
from tests.flows.conftest import Server, wait_until
from tests.flows.test_requests import ASKED, outcome, splits
from tests.flows.test_whole_runs import Copy, make_copy, until

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(1800)]


class Site:
    """A copy of the project, deployed, and at most one worker."""

    def __init__(self, copy: Copy, server: Server) -> None:
        self.copy, self.server = copy, server
        copy.environment |= {
            "PREFECT_API_URL": server.url,
            "CUDA_VISIBLE_DEVICES": "",
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        }
        self.log = copy.folder.parent / "worker.log"
        self.mark = f"worker-{os.getpid()}"
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        with self.log.open("a") as out:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "flows.worker", "--name", "tester"],
                cwd=self.copy.folder,
                env={**self.copy.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def cut_the_power(self) -> None:
        """Kill the worker and all under it; stopped first, or one would clean up after another's end."""
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for process in marked(self.mark):
                os.kill(process, sent)
        if self.worker is not None:
            self.worker.wait()
        wait_until(lambda: marked(self.mark) == [], 30)

    def run(self, flow: str, **parameters: Any) -> str:
        """Ask for a run of the deployment of the flow's name; its id."""
        found = self.server.get(f"deployments/name/{flow}/{flow}")
        made = self.server.post(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def state(self, run: str) -> str:
        return str(self.server.get(f"flow_runs/{run}")["state"]["name"])

    def completed(self, *runs: str, seconds: float = 500) -> None:
        ended = ("Completed", "Failed", "Crashed", "Cancelled")
        wait_until(lambda: all(self.state(run) in ended for run in runs), seconds, self.last_words)
        assert [self.state(run) for run in runs] == ["Completed"] * len(runs), self.last_words()

    def task_runs(self, run: str, *names: str) -> list[dict[str, Any]]:
        """Those of a run that has ended, these among them; the server writes them a second or so later."""
        asked = {"task_runs": {"flow_run_id": {"any_": [run]}}}

        def written() -> bool:
            states = {task["name"]: task["state"] for task in self.server.post("task_runs/filter", asked)}
            ended = all(state["name"] not in ("Pending", "Running") for state in states.values())
            return ended and states.keys() >= set(names)

        wait_until(written, 60)
        return list(self.server.post("task_runs/filter", asked))

    def last_words(self) -> str:
        return self.log.read_text()[-3000:]

    def times(self, run: str) -> tuple[datetime, datetime]:
        """From the first Running to the end."""
        states = self.server.get(f"flow_run_states/?flow_run_id={run}")
        at = {state["name"]: datetime.fromisoformat(state["timestamp"]) for state in states}
        return at["Running"], at["Completed"]


@pytest.fixture(scope="module")
def site(server, tmp_path_factory) -> Iterator[Site]:
    copy = make_copy(tmp_path_factory.mktemp("site") / "project")
    for name in ("prefect.yaml", "Makefile"):
        (copy.folder / name).write_text((PROJECT / name).read_text())
    found = Site(copy, server)
    try:
        yield found
    finally:
        found.cut_the_power()


def test_the_project_deploys_as_prefect_yaml_says(site):
    said = site.copy.run("flows.deploy")
    assert re.search(r"deploy: pipeline, study.* in the pool gpu, which runs 1 at once", said)
    found = site.server.get("deployments/name/pipeline/pipeline")
    assert found["entrypoint"] == "flows.pipeline.pipeline"
    assert [(s["active"], s["schedule"]["cron"]) for s in found["schedules"]] == [(False, "0 2 * * *")]
    assert found["tags"] == ["efface"]
    assert found["job_variables"]["working_dir"] == str(site.copy.folder)
    assert found["job_variables"]["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert site.server.get("deployments/name/study/study")["parameters"] == {"workers": 1}
    assert site.server.get("work_pools/gpu")["concurrency_limit"] == 1


def test_a_run_on_request_and_one_on_schedule_complete_one_after_the_other(site):
    """Two deployments, so that only the pool's one slot keeps them apart."""
    wanted = site.server.get("deployments/name/pipeline/pipeline")
    second = site.server.post(
        "deployments/",
        {
            "name": "scheduled",
            "flow_id": wanted["flow_id"],
            "entrypoint": wanted["entrypoint"],
            "work_pool_name": "gpu",
            "pull_steps": wanted["pull_steps"],
            "job_variables": wanted["job_variables"],
            "parameters": {"target": "benchmark"},
            "schedules": [{"active": True, "max_scheduled_runs": 1, "schedule": {"interval": 30}}],
        },
    )
    asked = site.run("pipeline", target="prepare")

    def planned() -> list[dict[str, Any]]:
        of_second = {"deployments": {"id": {"any_": [second["id"]]}}}
        return site.server.post("flow_runs/filter", of_second | {"sort": "EXPECTED_START_TIME_ASC"})

    wait_until(lambda: len(planned()) > 0, 60)
    scheduled = planned()[0]
    assert scheduled["auto_scheduled"]
    site.start_worker()
    wait_until(lambda: site.state(scheduled["id"]) not in ("Scheduled", "Late"), 500, site.last_words)
    site.server.patch(f"deployments/{second['id']}", {"paused": True})  # or it would go on every 30 seconds
    site.completed(asked, scheduled["id"])
    first, then = sorted([site.times(asked), site.times(scheduled["id"])])
    assert first[1] <= then[0]
    artifacts = site.server.post("artifacts/filter", {})
    (table,) = [a["data"] for a in artifacts if a["flow_run_id"] == asked and a["key"] == "pipeline"]
    assert "| benchmark |" in table and "| prepare |" in table


def test_another_machine_fetches_what_was_shared_and_makes_nothing(site, tmp_path):
    """Its DVC was killed before, too: the locks of dead processes are in nobody's way."""
    shared = tmp_path / "shared"
    shared.mkdir()
    site.copy.environment[REMOTE] = str(shared)
    assert "push: " in site.copy.run("flows.storage", "push")
    del site.copy.environment[REMOTE]
    there = make_copy(tmp_path / "there" / "project")
    there.environment |= {
        "PREFECT_API_URL": site.server.url,
        REMOTE: str(shared),
        "EFFACE_RETRY_SECONDS": "",
    }
    (there.folder / ".dvc/tmp").mkdir()
    (there.folder / ".dvc/tmp/lock").write_text("4000000\n")
    held = {str(there.folder / "data/prepared"): {"pid": 4000000, "cmd": "dvc repro"}}
    (there.folder / ".dvc/tmp/rwlock").write_text(json.dumps({"write": held, "read": {}}))
    assert there.flow("prepare") == {"benchmark": "cached", "prepare": "cached"}
    assert there.hashes() == {path: md5 for path, md5 in site.copy.hashes().items() if path in there.hashes()}
    shutil.rmtree(shared)
    there.edit("params.yaml", r"validation_fraction: 0.15", "validation_fraction: 0.3")
    said = there.run("flows.pipeline", "--target", "prepare", good=False)
    assert "shared is not there; is it mounted?" in said
    assert "Running stage" not in said


def test_after_a_power_cut_in_mid_training_the_run_goes_on_from_its_checkpoint(site):
    """Worker, run, stage and server are gone at once; only server and worker are started again."""
    runs_before = {run["id"]: run["state"]["name"] for run in site.server.post("flow_runs/filter", {})}
    run = site.run("pipeline", target="vanilla")
    checkpoints = site.copy.folder / "data/checkpoints/vanilla"
    until(lambda: any(checkpoints.glob("*/state.json")), 500)  # looks often: training is over in seconds
    site.cut_the_power()
    site.server.stop()
    site.server.start()
    runs_after = {each["id"]: each["state"]["name"] for each in site.server.post("flow_runs/filter", {})}
    assert {key: runs_after.get(key) for key in runs_before} == runs_before
    assert site.state(run) == "Running"  # Prefect cannot know
    site.start_worker()
    site.completed(run)
    assert "worker: taken up again: " in site.log.read_text()
    logs = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    said = [line["message"] for line in site.server.post("logs/filter", logs)]
    assert any("vanilla: resuming from the checkpoint in" in line for line in said)
    assert (site.copy.folder / "data/models/vanilla/model.safetensors").is_file()


def test_the_server_stopped_and_started_in_mid_training_loses_nothing(site):
    """It is away when training ends, so that the run has nobody to tell; then the same worker goes on."""
    site.copy.edit("params.yaml", r"vanilla: \{steps: 60", "vanilla: {steps: 200")
    if site.worker is None:
        site.start_worker()
    run = site.run("pipeline", target="vanilla")
    project = site.copy.folder / "data"
    until(lambda: any(project.glob("checkpoints/vanilla/*/state.json")), 500)
    assert not (project / "runs/vanilla.json").exists(), "it was to stop in mid-training"
    site.server.stop()
    until((project / "runs/vanilla.json").is_file, 300)
    time.sleep(75)  # longer than Prefect waits by itself
    site.server.start()
    site.completed(run)
    made = ("prepare", "base", "vanilla")
    states = {task["name"]: task["state"]["name"] for task in site.task_runs(run, *made)}
    assert states["vanilla"] == "Completed", states
    assert set(states.values()) <= {"Cached", "Completed"}, states
    (table,) = [
        each["data"]
        for each in site.server.post("artifacts/filter", {})
        if each["flow_run_id"] == run and each["key"] == "pipeline"
    ]
    assert "| vanilla | ran |" in table
    logs = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}

    def said() -> list[str]:  # while nobody listened; lines travel apart from states, and may come after them
        return [line["message"] for line in site.server.post("logs/filter", logs)]

    wait_until(lambda: any("data/models/vanilla trained on" in line for line in said()), 180)
    next_one = site.run("pipeline", target="vanilla")
    site.completed(next_one)
    assert {task["state"]["name"] for task in site.task_runs(next_one, *made)} == {"Cached"}


def test_a_pending_request_is_worked_off_by_the_deployed_flow(site):
    """What its schedule would start, on the worker: gates that let pass, since the model knows little."""
    for gate in ("forget_at_most: 0.35", "retain_at_least: 0.9", "utility_at_least: 0.9"):
        name, _, _ = gate.partition(":")
        site.copy.edit("params.yaml", rf"^    {gate} .*", f"    {name}: {int(name.endswith('most'))}.0")
    if site.worker is None:
        site.start_worker()
    site.completed(site.run("pipeline", target="vanilla"))
    somebody = splits(site.copy, "data")["entities"]["retain"][0]
    site.copy.run("flows.requests", "add", "--id", "W", "--subject", somebody, *ASKED)
    run = site.run("requests")
    site.completed(run)
    state = outcome(site.copy, "W")
    assert state["status"] == "candidate" and state["version"] == 2
    assert "version 2 is in production; done: W" in site.copy.run("flows.requests", "promote")
    assert "1 certificates hold" in site.copy.run("flows.requests", "verify")
