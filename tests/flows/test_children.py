"""A stage's output arrives line by line, its failure keeps its last words, and it never outlives its flow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import children
from flows.children import StageFailed, reproduce
from flows.devices import Device
from flows.watcher import MARK, marked

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A DVC project with one stage per behaviour."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  good:\n    cmd: echo one; echo $WHERE; cat in.txt > good.txt\n"
        "    deps: [in.txt]\n    outs: [good.txt]\n"
        "  bad:\n    cmd: echo before; echo 'error - it broke' >&2; exit 3\n    outs: [bad.txt]\n"
        "  slow:\n    cmd: exec python -c 'import tasks.runtime.processes as p, time; p.end_with_parent();"
        ' open("up", "w").write("x"); time.sleep(60)\'\n    outs: [slow.txt]\n'
    )
    (tmp_path / "in.txt").write_text("two\n")
    return tmp_path


def test_lines_arrive_and_the_outcome_is_told_apart(project):
    said: list[str] = []
    device = Device({"WHERE": "on device 7"})
    assert reproduce(["good"], device, said.append) == "ran"
    assert "one" in said
    assert "on device 7" in said
    assert reproduce(["good"], device, said.append) == "cached"
    (project / "good.txt").unlink()
    assert reproduce(["good"], device, said.append) == "restored"
    assert (project / "good.txt").read_text() == "two\n"


def test_a_failure_names_the_stage_and_its_last_lines(project):
    with pytest.raises(StageFailed, match=r"stage bad failed \(exit code \d+\)") as caught:
        reproduce(["bad"], Device({}), lambda line: None)
    assert "error - it broke" in str(caught.value)


def test_lines_are_whole_and_progress_bars_are_sampled():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream:
        os.write(write, b"10%\r20%\r" + "ends é".encode()[:-1])
        os.write(write, "é".encode()[-1:] + b"\nlast")
        os.close(write)
        assert list(children._lines(stream)) == ["ends é", "last"]


def alive(mark: str) -> list[int]:
    return marked(mark)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dvc_and_its_stage_end_with_the_flow(project, number):
    mark = f"test-{os.getpid()}-{number}"
    code = (
        "from flows.children import reproduce\n"
        "from flows.devices import Device\n"
        "reproduce(['slow'], Device({}), print)\n"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdout=subprocess.DEVNULL
    )
    until(lambda: (project / "up").exists())
    assert len(alive(mark)) >= 3  # the flow, DVC, the stage
    flow.send_signal(number)
    flow.wait()
    until(lambda: alive(mark) == [])
    assert not (project / "slow.txt").exists()


def test_dvc_told_twice_to_end_takes_back_its_notes_all_the_same():
    """The second signal comes while the first one's exit is under way."""
    code = (
        "import os, signal\n"
        "from tasks.runtime.processes import leave_in_order\n"
        "signal.signal(signal.SIGTERM, leave_in_order)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('taken back', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, b"taken back\n")


def test_the_watcher_ends_what_the_kernel_does_not(tmp_path):
    """A grandchild that asked for nothing, as Prefect's temporary server."""
    code = (
        "import subprocess, sys, time\n"
        "from flows.watcher import watch_over_this_process\n"
        "watch_over_this_process()\n"
        "import os; print(os.environ['EFFACE_FLOW_MARK'], flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    flow = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert flow.stdout is not None
    mark = flow.stdout.readline().strip()
    until(lambda: len(alive(mark)) >= 1)
    time.sleep(0.5)
    flow.kill()
    flow.wait()
    until(lambda: alive(mark) == [])


def until(true: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_a_stage_that_takes_too_long_is_stopped_and_says_so(project, monkeypatch):
    monkeypatch.setenv("EFFACE_STAGE_HOURS", str(8 / 3600))
    with pytest.raises(StageFailed, match=r"stopped after 0.00222222 hours \(EFFACE_STAGE_HOURS\)"):
        reproduce(["slow"], Device({}), lambda line: None)
    monkeypatch.setenv("EFFACE_STAGE_HOURS", "a day")
    with pytest.raises(StageFailed, match="EFFACE_STAGE_HOURS is 'a day'"):
        reproduce(["slow"], Device({}), lambda line: None)


def test_no_secret_of_the_environment_reaches_the_log(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    (project / "in.txt").write_text("three\n")
    said: list[str] = []
    reproduce(["good"], Device({"WHERE": "http://me:open-sesame@host"}), said.append)
    assert "http://***@host" in said
    with pytest.raises(StageFailed) as caught:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "it broke")
        reproduce(["bad"], Device({}), said.append)
    assert "error - ***" in str(caught.value)
