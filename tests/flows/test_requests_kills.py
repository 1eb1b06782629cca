"""Runs, promotions and purges that a full disk or kill -9 stops: the next call completes them."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.flows.project import Project, make_project, until
from tests.flows.test_requests import add, splits, state_of
from tests.small_disk import free_space, small_disk
from tests.traces import traces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # some twenty commands, one after the other

KILL = """
import importlib, os, signal, sys

place, name, *command = sys.argv[1:]
setattr(importlib.import_module(place), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from flows.requests.__main__ import app

app(command)
"""
"""A command of requests that kill -9 ends where it calls a function."""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    """A tiny sandbox on a small disk, with its vanilla model, gates to match, and two requests."""
    gates = {"forget_at_most": 1.0, "retain_at_least": 0.0, "utility_at_least": 0.0}
    gates |= dict.fromkeys(("knowledge_at_most", "membership_at_most", "tpr_at_most", "neighbours_at_least"))
    folder = tmp_path_factory.mktemp("kills")
    with small_disk(folder / "disk", 512):
        project = make_project(
            folder / "disk" / "project", {f"requests.gates.{name}": limit for name, limit in gates.items()}
        )
        project.environment["PREFECT_HOME"] = str(folder / "prefect")
        project.run("dvc", "repro", "vanilla", "split", seconds=1800)
        people = splits(project, "data")["entities"]["retain"]
        for name, person in zip("AB", people, strict=False):
            add(project, name, person)
        yield project


def killed(project: Project, place: str, name: str, *command: str) -> str:
    """Output of a command of requests that is killed where `place` calls `name`; nothing of it runs on."""
    log = project.folder.parent / "killed.log"
    with log.open("w") as output:  # a pipe would stay open as long as Prefect's temporary server
        process = subprocess.run(
            [sys.executable, "-c", KILL, place, name, *command],
            cwd=project.folder,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=1200,
            check=False,
        )
    assert process.returncode == -signal.SIGKILL, f"{place} {name}: {log.read_text()[-3000:]}"
    until(lambda: project.processes() == [], 60)
    end_servers(project)
    return log.read_text()


def end_servers(project: Project) -> None:
    """Kill Prefect's temporary servers in the project, which outlive a killed flow."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project.folder) and "uvicorn" in process.cmdline():
                process.kill()


def stages_in(output: str) -> set[str]:
    """Stages that ran."""
    return set(re.findall(r"python -m tasks (\w+)", output))


def certificates(project: Project) -> list[str]:
    return sorted(path.name for path in (project.folder / "data/requests/certificates").glob("*.json"))


def test_a_run_on_a_full_disk_says_so_and_changes_nothing(project):
    """The first time there is no room for its folder, the second time none for its data."""
    disk = project.folder.parent
    if not disk.is_mount():
        pytest.skip("mounting a small disk is not allowed here")
    for kib in (64, 5 * 1024):
        with free_space(disk, kib):
            output = project.run("flows.requests", "run", "--request", "A", success=False, seconds=1200)
        assert "make room" in output, output[-3000:]
        assert state_of(project, "A")["status"] == "pending" and certificates(project) == []


def test_a_run_that_is_killed_in_each_phase_is_completed_by_the_next(project):
    command = ("run", "--request", "A")
    for place, name in (
        ("flows.requests.flow", "make_project"),
        ("flows.requests.flow", "link_models"),
        ("tasks.requests.finish", "unknown_requests"),
    ):
        killed(project, place, name, *command)
        assert state_of(project, "A")["status"] == "pending" and certificates(project) == []
    log = project.folder.parent / "training.log"
    run = project.start("flows.requests", *command, log=log)
    until(lambda: run.poll() is not None or "python -m tasks unlearn" in log.read_text(), 900)
    assert run.poll() is None, log.read_text()[-3000:]
    run.kill()
    run.wait()
    until(lambda: project.processes() == [], 60)
    end_servers(project)
    assert state_of(project, "A")["status"] == "pending"
    assert "saliency" not in stages_in(killed(project, "tasks.requests.finish", "judge", *command))
    for place, name in (
        ("tasks.requests.finish", "send"),  # before registration
        ("tasks.requests.finish", "sealed"),  # after it
        ("tasks.requests.promotion", "write_certificate"),  # the new version is the candidate
    ):
        output = killed(project, place, name, *command)
        assert stages_in(output) == set(), "finished stages stay"
        assert state_of(project, "A")["status"] == "pending" and certificates(project) == []
    killed(project, "tasks.requests.promotion", "write_state", "promote")
    assert state_of(project, "A")["status"] == "pending"
    assert certificates(project) == ["0001-A.json"]
    output = project.run("flows.requests", "promote")
    assert "version 2 is in production; done: A" in output
    assert certificates(project) == ["0001-A.json"] and state_of(project, "A")["status"] == "done"
    assert "1 certificates hold" in project.run("flows.requests", "verify")
    versions = project.run("flows.requests", "status")
    assert re.search(r"│ 2 +│ 1 +│ A +│ production", versions) and not re.search(r"│ 3 +│", versions)


def test_a_purge_that_is_killed_in_each_phase_is_completed_by_the_next(project):
    if state_of(project, "A")["status"] != "done":
        pytest.skip("request A is not done")
    (person,) = state_of(project, "A")["subjects"]
    words = (person, splits(project, "data")["names"][person])
    rows = pq.read_table(project.folder / "data/prepared/samples.parquet").to_pylist()
    pictures = {row["image"]["bytes"] for row in rows if row["entity_id"] == person and row["image"]}

    def left() -> set[str]:
        prefect = Path(project.environment["PREFECT_HOME"])
        paths = traces(project.folder, words, pictures) | traces(prefect, words, pictures)
        code = tuple(str(project.folder / name) for name in ("efface", "tasks", "flows"))
        return {str(path) for path in paths if not str(path).startswith(code)}

    before = left()
    killed(project, "tasks.requests.purge", "start", "purge", "A")
    assert left() == before and state_of(project, "A")["status"] == "done"
    for place, name in (
        ("flows.requests.purge", "_delete_runs"),
        ("tasks.requests.purge", "delete_objects"),
        ("tasks.requests.purge", "_remove"),
        ("tasks.requests.purge", "_record"),
        ("tasks.requests.purge", "write_certificate"),
        ("tasks.requests.purge", "write_state"),
        ("flows.requests.purge", "reproduce"),
        ("flows.requests.purge", "tell_done"),
        ("tasks.requests.purge", "complete"),
    ):
        killed(project, place, name, "purge", "A")
        journal = json.loads(project.read(".requests/journal.json"))
        assert (journal["kind"], journal["completed"]) == ("purge", False)
        refused = project.run("flows.requests", "promote", success=False)
        assert "python -m flows.requests purge A" in refused
    assert "record 2 says what" in project.run("flows.requests", "purge", "A", seconds=900)
    assert left() == set() and state_of(project, "A")["status"] == "purged"
    assert certificates(project) == ["0001-A.json", "0002-A.json"]
    assert (project.folder / "data/requests/letters/A.txt").is_file()
    assert person not in splits(project, "data")["entities"]["retain"]
    assert "2 certificates hold" in project.run("flows.requests", "verify")
