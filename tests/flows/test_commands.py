"""DVC's commands as child processes: outcome, failure, end."""

import json
import shutil
import subprocess
import sys
import threading

import pytest

from flows import commands
from flows.commands import CommandFailed, ending_with_flow, outcome_of, query, reproduce, stale_stages


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two stages; the second reads what the first writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_ending", threading.Event())  # an earlier flow of this process has ended
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    (tmp_path / "params.yaml").write_text("first: 1\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  first: {cmd: echo made > one, params: [first], outs: [one]}\n"
        "  second: {cmd: cat one > two, deps: [one], outs: [two]}\n"
        "  broken: {cmd: echo broken on purpose; exit 3, outs: [three]}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        (["Running stage 'a':", "Stage 'b' didn't change, skipping"], "ran"),
        (["Stage 'a' is cached - skipping run, checking out outputs"], "restored"),
        (["Stage 'a' didn't change, skipping"], "cached"),
    ],
)
def test_outcome_of_several_stages(lines, outcome):
    assert outcome_of(lines) == outcome


def test_stages_run_once_and_come_back_from_the_cache(project):
    lines: list[str] = []
    assert stale_stages() == {"first", "second", "broken"}
    assert reproduce("second", log=lines.append) == "ran"
    assert any("Running stage 'first'" in line for line in lines)
    assert stale_stages() == {"broken"}
    assert reproduce("second", log=lines.append) == "cached"
    (project / "two").unlink()
    assert stale_stages() == {"broken", "second"}
    assert reproduce("second", log=lines.append, options=("--single-item",)) == "restored"


def test_a_failure_has_the_last_lines_of_the_stage(project):
    with pytest.raises(CommandFailed) as error:
        reproduce("broken", log=lambda line: None)
    assert "broken on purpose" in str(error.value) and "repro broken" in str(error.value)


def test_a_failure_on_a_full_disk_says_to_make_room(project, monkeypatch):
    usage = shutil.disk_usage(project)
    for free, full in ((5 * 2**20, True), (2**30, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        with pytest.raises(CommandFailed) as error:
            reproduce("broken", log=lambda line: None)
        assert ("5 MiB left: make room" in str(error.value)) is full


def test_a_progress_bar_is_a_line_a_minute_and_its_last(project, monkeypatch):
    bar = r"printf '\r1/3'; printf '\r2/3'; printf '\r3/3\n'; echo end > bar"
    (project / "dvc.yaml").write_text(f"stages:\n  bar:\n    cmd: >-\n      {bar}\n    outs: [bar]\n")
    lines: list[str] = []
    reproduce("bar", log=lines.append)
    assert [line for line in lines if line in ("1/3", "2/3", "3/3")] == ["3/3"]


def test_a_question_that_fails_names_its_command(project):
    with pytest.raises(CommandFailed) as error:
        query("dag", "--dot", "nothing")
    assert "nothing" in str(error.value)


def test_nothing_starts_while_the_flow_ends(project, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with ending_with_flow():
        assert reproduce("first", log=lambda line: None) == "ran"
    with pytest.raises(CommandFailed):
        reproduce("second", log=lambda line: None)


@pytest.mark.parametrize(("command", "remedy"), [("sleep", "remove .dvc/tmp/rwlock"), ("dvc", "wait for it")])
def test_a_lock_says_whether_its_holder_is_at_work(project, command, remedy):
    """A process number is given again after a restart, or in another container."""
    holder = subprocess.Popen(["bash", "-c", f"exec -a {command} sleep 600"])
    try:
        lock = {"write": {str(project / "one"): {"pid": holder.pid, "cmd": "dvc repro"}}, "read": {}}
        (project / ".dvc" / "tmp").mkdir(exist_ok=True)
        (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(lock))
        with pytest.raises(CommandFailed, match=remedy) as error:
            reproduce("first", log=lambda line: None)
        assert f"process {holder.pid} is" in str(error.value)
    finally:
        holder.kill()
        holder.wait()


def test_a_copy_without_git_gets_the_remedy():
    error = CommandFailed("dvc status", 255, ["ERROR: /srv/copy is not a git repository"])
    assert "dvc config --local core.no_scm true" in str(error)


def test_a_command_can_be_ended_at_a_line():
    with ending_with_flow():
        lines = commands.dvc("version", log=print, stop_at=lambda line: line.startswith("Platform"))
    assert lines[-1].startswith("Platform") and not commands._children
