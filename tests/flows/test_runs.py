"""Whole runs of real stages in a copy of the project: by DVC, by Prefect, changed, damaged, killed."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.flows.project import Project, make_project, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CURRENT = {"params": "cached", "benchmark": "cached", "prepare": "cached"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy in which `dvc repro prepare` has run."""
    project = make_project(tmp_path_factory.mktemp("runs") / "project")
    assert project.repro("prepare").count("Running stage") == 3
    return project


@contextmanager
def nothing_restored(project: Project) -> Iterator[None]:
    """Change a parameter of `prepare`, with DVC's run cache emptied, and bring the old table back."""
    project.set({"split.forget_fraction": 0.15})
    shutil.rmtree(project.folder / ".dvc/cache/runs", ignore_errors=True)
    yield
    project.set({"split.forget_fraction": 0.1})
    project.repro("prepare")


def partial_files(project: Project) -> list[Path]:
    return list((project.folder / "data").glob("**/.*.partial-*"))


def test_a_flow_after_repro_runs_nothing(project):
    lock = project.read("dvc.lock")
    assert project.flow("prepare") == CURRENT
    assert project.read("dvc.lock") == lock


def test_a_changed_parameter_reruns_its_stage_and_changing_it_back_restores(project):
    hashes = project.hashes()
    project.set({"split.forget_fraction": 0.15})
    assert project.flow("prepare") == CURRENT | {"prepare": "ran"}
    changed = project.hashes()
    assert changed["data/prepared/people.json"] != hashes["data/prepared/people.json"]
    assert changed["data/prepared/samples.parquet"] == hashes["data/prepared/samples.parquet"]
    assert "up to date" in project.run("dvc", "status", "prepare", "benchmark", "params")
    project.set({"split.forget_fraction": 0.1})
    assert project.flow("prepare") == CURRENT | {"prepare": "restored"}
    assert project.hashes() == hashes
    assert "Running stage" not in project.repro("prepare")


def test_changed_code_and_a_damaged_output_make_their_stage_stale(project):
    code, table = project.folder / "tasks/prepare.py", project.folder / "data/prepared/samples.parquet"
    text, content = code.read_text(), table.read_bytes()
    code.write_text(text + "\n# a note\n")
    assert project.flow("prepare") == CURRENT | {"prepare": "ran"}
    code.write_text(text)
    table.write_bytes(content[:-100])
    assert project.flow("prepare") == CURRENT | {"prepare": "restored"}
    assert table.read_bytes() == content


def test_a_failing_stage_fails_the_flow_with_its_last_lines(project):
    code = project.folder / "tasks/prepare.py"
    text = code.read_text()
    code.write_text(
        re.sub(r"(?m)^def run\(.*\n(?:    \"\"\".*\"\"\"\n)?", r"\g<0>    raise ValueError('broken')\n", text)
    )
    output = project.run("flows.pipeline", "--target", "split", success=False)
    assert "error: broken" in output.split("error: stage prepare")[1]
    assert re.search(r"│ prepare +│ failed", output)
    assert re.search(r"│ split +│ not run", output)
    assert "not run, as a stage that they need failed: split" in output
    assert "NotReady" not in output
    code.write_text(text)
    assert project.flow("prepare") == CURRENT | {"prepare": "restored"}


def test_what_one_machine_shared_another_fetches(project, tmp_path):
    second = make_project(tmp_path / "second")
    for machine in (project, second):
        machine.run("dvc", "remote", "add", "--local", "--default", "office", str(tmp_path / "storage"))
    assert project.flow("prepare") == CURRENT
    assert second.flow("prepare") == dict.fromkeys(CURRENT, "restored")
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    (tmp_path / "storage").write_text("a file where the storage was")
    output = project.run("flows.pipeline", "--target", "prepare")
    assert "dvc push failed, the run goes on without it" in output
    project.run("dvc", "remote", "remove", "--local", "office")


def kill_alone(process):
    """Kill a process and wait until the DVC and the stages under it have ended and their pids are free."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    computing = [child.pid for child in descendants if {"dvc", "tasks"} & set(child.cmdline())]
    process.kill()
    process.wait()
    until(lambda: not any(psutil.pid_exists(pid) for pid in computing), 30)
    for child in descendants:  # Prefect's temporary server
        with suppress(psutil.NoSuchProcess):
            child.kill()


@pytest.mark.parametrize("command", ["dvc", "flow"])
def test_a_stage_of_a_killed_command_ends_and_is_run_again(project, command, tmp_path):
    module = ("dvc", "repro", "prepare") if command == "dvc" else ("flows.pipeline", "--target", "prepare")
    with nothing_restored(project):
        process = project.start(*module, log=tmp_path / "log")
        until(lambda: bool(partial_files(project)) or process.poll() is not None, 200)
        assert process.poll() is None, "it ended before it could be killed"
        kill_alone(process)
        project.repro("prepare")
        assert partial_files(project) == []
        resumed = project.hashes()["data/prepared/samples.parquet"]
        project.repro("--force", "--single-item", "prepare")
        assert project.hashes()["data/prepared/samples.parquet"] == resumed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_flow_and_its_stages_at_once(project, number, tmp_path):
    with nothing_restored(project):
        log = tmp_path / "log"
        flow = project.start("flows.pipeline", "--target", "prepare", log=log)
        until(lambda: "python -m tasks prepare" in log.read_text() or flow.poll() is not None, 200)
        os.killpg(flow.pid, number)
        assert flow.wait(timeout=10) == 128 + number
        assert "the next run resumes" in log.read_text()
        until(lambda: project.processes() == [], 30)
        assert project.flow("prepare") == CURRENT | {"prepare": "ran"}


def test_training_killed_half_way_resumes_from_its_checkpoint(project, tmp_path):
    project.repro("base")
    checkpoints = project.folder / "data/checkpoints/vanilla"
    process = project.start("flows.pipeline", "--target", "vanilla", log=tmp_path / "log")
    until(_checkpointed(checkpoints), 300)
    kill_alone(process)
    assert not (project.folder / "data/models/vanilla").exists()
    assert "vanilla: resuming from" in project.repro("vanilla")
    resumed = project.hashes()["data/models/vanilla"]
    project.run("dvc", "repro", "--force", "--single-item", "vanilla")
    assert project.hashes()["data/models/vanilla"] == resumed  # the same weights as without the kill


def _checkpointed(folder: Path) -> Callable[[], bool]:
    return lambda: any(".partial" not in path.parent.name for path in folder.glob("*/state.json"))
