"""Requests by the real components: DVC, Prefect, MLflow and stages, in a copy of the project."""

import datetime as dt
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.storage import REMOTE
from flows.watcher import MARK, marked
from tasks.requests.state import production_lock
from tests.flows.test_whole_runs import Copy, make_copy, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # some twenty processes, one after the other

IN_A_YEAR = str(dt.date.today() + dt.timedelta(days=365))
ASKED = ("--reason", "a test", "--legal-basis", "GDPR Art. 17", "--requester", "case 7", "--due", IN_A_YEAR)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Copy:
    """A tiny world with its vanilla model, which knows little, and gates to match."""
    copy = make_copy(tmp_path_factory.mktemp("requests") / "project")
    copy.edit("params.yaml", r"^    forget_at_most: 0.35 .*", "    forget_at_most: 1.0")
    copy.edit("params.yaml", r"^    retain_at_least: 0.9 .*", "    retain_at_least: 0.0")
    copy.edit("params.yaml", r"^    utility_at_least: 0.9 .*", "    utility_at_least: 0.0")
    copy.run("dvc", "repro", "vanilla", seconds=900)
    return copy


def outcome(project: Copy, request: str) -> dict:
    return json.loads(project.read(f"data/requests/state/{request}.json"))


def splits(project: Copy, folder: str) -> dict:
    return json.loads(project.read(f"{folder}/prepared/splits.json"))


def shared_files(project: Copy, state: dict, shared: Path) -> dict[str, bool]:
    """What a run's dvc.lock names, and whether the shared storage has it."""
    lock = project.read(f".requests/{state['run']}/dvc.lock")
    named = re.findall(
        r"- path: (data/(?:models/unlearned|masks|scores)\S+)\n +hash: md5\n +md5: (\S+)", lock
    )
    return {path: (shared / "files/md5" / md5[:2] / md5[2:]).is_file() for path, md5 in named}


def test_requests_go_from_intake_to_certificate_and_back(project):
    vanilla = project.hashes()["data/models/vanilla"]
    first, second, *others = splits(project, "data")["entities"]["retain"]
    said = project.run("flows.requests", "add", "--id", "A", "--subject", first, *ASKED)
    assert "data/requests/A.yaml written" in said
    shared = project.folder.parent / "shared"
    shared.mkdir()
    project.environment |= {REMOTE: str(shared), "EFFACE_RETRY_SECONDS": ""}
    accepted = project.run("flows.requests", "run", seconds=600)
    assert "request A: version 2 has forgotten them and is the candidate" in accepted
    assert outcome(project, "A")["status"] == "candidate"
    assert re.search(r"push: \d+ files to .*/shared", accepted)
    kept = shared_files(project, outcome(project, "A"), shared)
    assert kept["data/models/unlearned/mmunlearner"] and all(kept.values()), "what was made is in the storage"
    assert "version 2 is in production; done: A" in project.run("flows.requests", "promote")

    assert "1 certificates hold" in project.run("flows.requests", "verify")
    where = project.run("flows.requests", "certificate", "A").split()
    certificate = json.loads(project.read(where[-1]))
    assert (certificate["models"]["before"]["version"], certificate["models"]["after"]["version"]) == (1, 2)
    assert first not in project.read(where[-1]) and first not in project.read(where[-2])
    card = project.read(f"{certificate['run']}/data/models/unlearned/mmunlearner/README.md")
    assert f"- `{certificate['request']['subjects'][0]}`" in card, "the same hash as in the certificate"
    made = splits(project, f"{certificate['run']}/data")
    assert made["entities"]["forget"] == [first] and {second, *others} <= set(made["entities"]["retain"])
    assert project.hashes()["data/models/vanilla"] == vanilla, "the pipeline's own results are as they were"

    # The second starts from the first's model, asks about its person again, and fails a gate.
    project.run("flows.requests", "add", "--id", "B", "--subject", second, *ASKED)
    project.edit("params.yaml", r"^    retain_at_least: 0.0", "    retain_at_least: 99.0")
    shutil.rmtree(shared)
    refused = project.run("flows.requests", "run", good=False, seconds=600)
    assert "not shared yet: error: shared storage" in refused and "is it mounted?" in refused
    del project.environment[REMOTE]
    assert re.search(
        r"error: request B needs attention: retain (\d\.\d+|could not be measured), expected at least 99",
        refused,
    )
    assert "version 2 stays in production" in refused
    state = outcome(project, "B")
    assert state["status"] == "needs-attention" and state["version"] is None
    folder = f".requests/{state['run']}"
    made = splits(project, f"{folder}/data")
    assert made["forgotten"] == [first] and made["entities"]["forget"] == sorted([first, second])
    gates = json.loads(project.read(f"{folder}/gates.json"))
    assert [gate["about"] for gate in gates["gates"]] == ["A", "B", None]
    weights = [
        (project.folder / folder / "data/models" / name / "model.safetensors").read_bytes()
        for name in ("original", "vanilla", "unlearned/mmunlearner")
    ]
    assert weights[0] == (project.folder / "data/models/vanilla/model.safetensors").read_bytes()
    assert len(set(weights)) == 3, "the first vanilla model, the one in production, and the new one"

    back = project.run("flows.requests", "rollback", "--reason", "complaints")
    assert "version 1 is in production again, 2 is not; these requests need attention: A" in back
    shown = project.run("flows.requests", "status")
    assert re.search(r"│ 1 +│ +│ nobody \(vanilla\) +│ production", shown)
    assert re.search(r"│ 2 +│ 1 +│ A +│", shown) and "rolled back from version 2 to 1: complaints" in shown
    assert "1 certificates hold" in project.run("flows.requests", "verify")


def test_a_run_told_to_end_in_mid_training_frees_the_model_and_keeps_the_request(project):
    """SIGTERM to all of it at once, Prefect's temporary server too, as when a service is stopped."""
    *_, last = splits(project, "data")["entities"]["retain"]
    project.run("flows.requests", "add", "--id", "C", "--subject", last, *ASKED)
    mark = f"told-{os.getpid()}"
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.requests", "run", "--request", "C"],
        cwd=project.folder,
        env={**project.environment, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lock = project.folder / ".efface" / "requests.lock"
    begun = (project.folder / ".requests").glob
    until(lambda: run.poll() is not None or any(begun("C-*/.dvc/tmp/rwlock")), 400)
    assert run.poll() is None and "a run of requests" in lock.read_text()
    os.killpg(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 128 + signal.SIGTERM, said
    assert "stopped; the production model is free for others" in said
    with production_lock(project.folder, "the next"):
        until(lambda: marked(mark) == [], 30)
    assert not (project.folder / "data/requests/state/C.json").exists()
    assert re.search(r"│ C +│ \S+ +│ 1 +│ pending", project.run("flows.requests", "list"))
