"""Requests with the real components, DVC, Prefect, MLflow and stages, in a copy of the project."""

import datetime as dt
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from tasks.requests.state import production_lock
from tests.flows.project import Project, make_project, until
from tests.traces import traces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # some twenty processes, one after the other

IN_A_YEAR = str(dt.date.today() + dt.timedelta(days=365))
REASON = ("--reason", "a test", "--legal-basis", "GDPR Art. 17", "--requester", "case 7", "--due", IN_A_YEAR)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A tiny sandbox with its vanilla model, which knows little, and gates to match."""
    gates = {"forget_at_most": 1.0, "retain_at_least": 0.0, "utility_at_least": 0.0}
    gates |= dict.fromkeys(("knowledge_at_most", "membership_at_most", "tpr_at_most", "neighbours_at_least"))
    project = make_project(
        tmp_path_factory.mktemp("requests") / "project",
        {f"requests.gates.{name}": limit for name, limit in gates.items()},
    )
    project.run("dvc", "repro", "vanilla", "split", seconds=900)
    return project


def state_of(project: Project, request: str) -> dict:
    return json.loads(project.read(f"data/requests/state/{request}.json"))


def splits(project: Project, folder: str) -> dict:
    return json.loads(project.read(f"{folder}/prepared/splits.json"))


def add(project: Project, request: str, person: str) -> str:
    """Add a request, confirmed, as this tiny model hardly knows anybody; returns what `add` prints."""
    output = project.run("flows.requests", "add", "--id", request, "--subject", person, *REASON)
    project.run("flows.requests", "confirm", request, "--reason", "a tiny model")
    return output


def shared_files(project: Project, run: str, storage: Path) -> dict[str, bool]:
    """Outputs in the dvc.lock of a run, and whether the shared storage has them."""
    stages = YAML(typ="safe").load(project.folder / ".requests" / run / "dvc.lock")["stages"]
    hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    return {path: (storage / "files/md5" / md5[:2] / md5[2:]).is_file() for path, md5 in hashes.items()}


def test_requests_go_from_intake_to_certificate_and_back(project):
    """The first request's person is hardly known to the tiny model, so it needs a confirmation."""
    vanilla = project.hashes()["data/models/vanilla"]
    first, second, *rest = splits(project, "data")["entities"]["retain"]
    output = add(project, "A", first)
    assert "data/requests/A.yaml written" in output
    storage = project.folder.parent / "storage"
    project.run("dvc", "remote", "add", "--local", "--default", "office", str(storage))
    accepted = project.run("flows.requests", "run", seconds=600)
    assert "request A: version 2 has forgotten them and is the candidate" in accepted
    assert state_of(project, "A")["status"] == "candidate"
    outputs = shared_files(project, state_of(project, "A")["run"], storage)
    assert outputs["data/models/unlearned/mmunlearner"] and all(outputs.values())
    assert "version 2 is in production; done: A" in project.run("flows.requests", "promote")

    assert "1 certificates hold" in project.run("flows.requests", "verify")
    paths = project.run("flows.requests", "certificate", "A").split()
    certificate = json.loads(project.read(paths[-1]))
    assert (certificate["models"]["before"]["version"], certificate["models"]["after"]["version"]) == (1, 2)
    assert first not in project.read(paths[-1]) and first not in project.read(paths[-2])
    card = project.read(f"{certificate['run']}/data/models/unlearned/mmunlearner/README.md")
    assert f"- `{certificate['request']['subjects'][0]}`" in card, "the same hash as in the certificate"
    run_splits = splits(project, f"{certificate['run']}/data")
    assert run_splits["entities"]["forget"] == [first]
    assert {second, *rest} <= set(run_splits["entities"]["retain"])
    assert project.hashes()["data/models/vanilla"] == vanilla

    # The second starts from the first's model, asks about its person again, and fails a gate.
    add(project, "B", second)
    project.set({"requests.gates.retain_at_least": 99.0})
    shutil.rmtree(storage)
    storage.write_text("a file where the storage was")
    refused = project.run("flows.requests", "run", success=False, seconds=600)
    assert "dvc push failed, the run goes on without it" in refused
    assert re.search(
        r"error: request B needs attention: retain (\d\.\d+|could not be measured), expected at least 99",
        refused,
    )
    assert "version 2 stays in production" in refused
    state = state_of(project, "B")
    assert state["status"] == "needs-attention" and state["version"] is None
    folder = f".requests/{state['run']}"
    run_splits = splits(project, f"{folder}/data")
    assert run_splits["forgotten"] == [first] and run_splits["entities"]["forget"] == sorted([first, second])
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
    status = project.run("flows.requests", "status")
    assert re.search(r"│ 1 +│ +│ none \(vanilla\) +│ production", status)
    assert re.search(r"│ 2 +│ 1 +│ A +│", status) and "rolled back from version 2 to 1: complaints" in status
    assert "1 certificates hold" in project.run("flows.requests", "verify")


def test_after_a_purge_nothing_of_the_person_is_left_and_the_next_run_goes_on(project):
    (first,) = state_of(project, "A")["subjects"]
    name = splits(project, "data")["names"][first]
    storage, prefect = project.folder.parent / "storage", project.folder.parent / "prefect"
    storage.unlink(missing_ok=True)
    storage.mkdir(exist_ok=True)
    rows = pq.read_table(project.folder / "data/prepared/samples.parquet").to_pylist()
    pictures = {row["image"]["bytes"] for row in rows if row["entity_id"] == first and row["image"]}
    assert len(pictures) > 1
    project.set({"requests.gates.retain_at_least": 0.0})
    project.run("flows.requests", "retry", "A")
    project.run("flows.requests", "run", "--request", "A", seconds=600)
    letter = project.run("flows.requests", "promote").split("letter of request A: ")[1].split()[0]
    assert "types a name" in " ".join(project.read(letter).split())
    project.run("flows.requests", "withdraw", "B", "--reason", "a test")

    def left() -> set[str]:
        code = ("efface", "tasks", "flows", "profiles")
        paths = traces(project.folder, (first, name), pictures) | traces(storage, (first, name), pictures)
        paths |= traces(prefect, (first, name), pictures)
        relative = {path.relative_to(project.folder.parent).as_posix() for path in paths}
        return {path for path in relative if path.split("/")[1] not in code}

    before = left()
    for place in (
        "project/.dvc/cache/",
        "project/.requests/",
        "project/data/",
        "storage/",
        "project/mlartifacts/",
    ):
        assert any(path.startswith(place) for path in before), place
    listed = project.run("flows.requests", "purge", "A", "--dry-run")
    assert "delete in the project: data/prepared" in listed and left() == before
    output = project.run("flows.requests", "purge", "A", seconds=600)
    assert "record 3 says what" in output
    assert left() == set()
    assert "3 certificates hold" in project.run("flows.requests", "verify")
    assert first not in splits(project, "data")["entities"]["retain"], "prepared again, without them"
    refused = project.run("flows.requests", "rollback", "--reason", "again", "--to", "1", success=False)
    assert "purged" in refused
    *_, other = splits(project, "data")["entities"]["retain"]
    add(project, "D", other)
    assert "request D: version" in project.run("flows.requests", "run", "--request", "D", seconds=600)
    assert left() == set()
    assert "4 certificates hold" in project.run("flows.requests", "verify")


def test_sigterm_in_mid_training_frees_the_model_and_keeps_the_request(project):
    """SIGTERM to the whole group, Prefect's temporary server too, as when a service is stopped."""
    *_, other, _ = splits(project, "data")["entities"]["retain"]  # the last one is the candidate's
    add(project, "C", other)
    log = project.folder.parent / "sigterm.log"
    run = project.start("flows.requests", "run", "--request", "C", log=log)
    until(lambda: run.poll() is not None or "python -m tasks unlearn" in log.read_text(), 400)
    assert run.poll() is None, log.read_text()[-2000:]
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    assert "the next run resumes" in log.read_text()
    with production_lock(project.folder, "the next"):
        until(lambda: project.processes() == [], 30)
    assert state_of(project, "C")["status"] == "pending"
    assert re.search(r"│ C +│ \S+ +│ 1 +│ [^│]+│ pending", project.run("flows.requests", "list"))
