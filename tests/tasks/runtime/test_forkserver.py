"""The fork server, as its own process, in a project whose `tasks` does nothing but tell what it finds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import forkserver
from tests.tiny_project import PROJECT

pytestmark = pytest.mark.skipif(not forkserver._can_fork(), reason="for Linux without a GPU")

PROGRAM = """
import sys
from tasks.runtime import forkserver
forkserver.hand_over(sys.argv[1])
import probe
"""
PROBE = """
import atexit, json, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from tasks.runtime import startup
forked = "torch" in sys.modules
atexit.register(Path(sys.argv[2]).with_suffix(".end").touch)
Path(sys.argv[2]).write_text(json.dumps({
    "forked": forked, "process": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(),
    "arguments": sys.argv[1:], "word": os.environ.get("EFFACE_WORD"), "read": sys.stdin.read(),
    "mark": getattr(startup, "MARK", None),
    "threads": sys.modules["torch"].get_num_threads() if forked else None,
}))
print("out", sys.argv[1], flush=True)
print("err", sys.argv[1], file=sys.stderr, flush=True)
if "wait" in sys.argv:
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        Path(sys.argv[2]).with_suffix(".left").touch()
sys.exit(int(sys.argv[3]))
"""


def _as_in_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it


@dataclass
class Project:
    """A folder with a small `tasks`, the fork server's files among them, and an owner for servers."""

    folder: Path
    owner: subprocess.Popen[bytes]

    def start(self, stage: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        names = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        for before in self.folder.glob(f"{stage}.*"):
            before.unlink()
        return subprocess.Popen(
            [sys.executable, "-m", "tasks", stage, str(self.folder / f"{stage}.json"), *arguments],
            cwd=self.folder,
            env={**names, "DVC_STAGE": stage, forkserver.OWNER: str(self.owner.pid), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_as_in_a_terminal,
        )

    def run(self, stage: str, *arguments: str, **variables: str) -> tuple[dict[str, Any], int, str, str]:
        """What the stage found, its exit code, and what it said on both streams."""
        started = self.start(stage, *(arguments or ("0",)), **variables)
        out, err = started.communicate("words\n", timeout=60)
        return self.found(stage), started.returncode, out, err

    def found(self, stage: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{stage}.json").read_text())

    def waiting(self, stage: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """A stage that is in the middle of its work, and what it found."""
        started = self.start(stage, "0", "wait")
        assert started.stdin is not None and started.stdout is not None
        started.stdin.close()
        assert started.stdout.readline() == f"out {stage}\n"
        assert started.stdout.readline() == "waiting\n"
        return started, self.found(stage)

    def left(self, stage: str) -> bool:
        """Whether a stage that was ended came to its `finally`."""
        return (self.folder / f"{stage}.left").exists()

    @property
    def address(self) -> Path:
        address = forkserver.address_of(self.owner.pid)
        assert address is not None
        return address


@contextlib.contextmanager
def project(folder: Path) -> Iterator[Project]:
    """A project whose server answers."""
    (folder / "tasks").mkdir()
    for name in ("__init__.py", "processes.py", "startup.py", "forkserver"):
        source, target = PROJECT / "tasks" / name, folder / "tasks" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (folder / "tasks/__main__.py").write_text(PROGRAM)
    (folder / "probe.py").write_text(PROBE)
    with an_owner() as owner:
        made = Project(folder, owner)
        _, code, *_ = made.run("prepare")
        assert code == 0 and not made.found("prepare")["forked"]
        until(made.address.exists)
        yield made
        owner.kill()
        until(lambda: not made.address.exists())


@contextlib.contextmanager
def an_owner() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as owner:
        yield owner
        owner.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Project]:
    """A project for tests that leave its server as it is: its start takes seconds."""
    with project(tmp_path_factory.mktemp("forks")) as made:
        yield made


@pytest.fixture
def own(tmp_path) -> Iterator[Project]:
    """A project of which nothing need be left."""
    with project(tmp_path) as made:
        yield made


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_a_stage_is_forked_with_all_that_its_process_was_given(shared):
    found, code, out, err = shared.run("prune", "7", EFFACE_WORD="blue", OMP_NUM_THREADS="2")
    assert found["forked"] and found["read"] == "words\n" and found["word"] == "blue"
    assert (code, out, err) == (7, "out prune\n", "err prune\n")
    assert found["arguments"] == ["prune", str(shared.folder / "prune.json"), "7"]
    assert found["folder"] == str(shared.folder) and found["threads"] == 2
    assert shared.run("evaluate", OMP_NUM_THREADS="1")[0]["threads"] == 1
    _, code, _, err = shared.run("prune", "a word")
    assert code == 1 and err.endswith("ValueError: invalid literal for int() with base 10: 'a word'\n")
    assert (shared.folder / "prune.end").exists()


def test_project_code_is_read_anew_by_every_stage(shared):
    """That of the server too, which has read it once."""
    code = (shared.folder / "tasks/runtime/startup.py").read_text()
    assert shared.run("prune")[0]["mark"] is None
    (shared.folder / "tasks/runtime/startup.py").write_text(code + "MARK = 'new'\n")
    (shared.folder / "probe.py").write_text(PROBE.replace("int(sys.argv[3])", "9"))
    try:
        found, ended, *_ = shared.run("prune")
        assert found["forked"] and found["mark"] == "new" and ended == 9
    finally:
        (shared.folder / "tasks/runtime/startup.py").write_text(code)
        (shared.folder / "probe.py").write_text(PROBE)


def test_two_stages_at_once_are_two_processes_of_one_server(shared):
    (one, first), (two, second) = shared.waiting("vanilla"), shared.waiting("retrained")
    assert first["forked"] and second["forked"]
    assert first["parent"] == second["parent"] and first["process"] != second["process"]
    one.terminate()
    assert one.wait(timeout=20) == 143 and two.poll() is None
    two.send_signal(signal.SIGINT)
    assert two.wait(timeout=20) != 0
    assert shared.left("vanilla") and shared.left("retrained")


def test_a_stage_ends_with_the_process_that_handed_it_over(shared):
    started, found = shared.waiting("vanilla")
    started.kill()
    until(lambda: not is_alive(found["process"]))
    assert shared.left("vanilla") and is_alive(found["parent"])
    assert shared.run("prune")[0]["forked"]


def test_a_stage_and_who_handed_it_over_may_be_gone_at_once(shared):
    started, found = shared.waiting("vanilla")
    os.kill(found["parent"], signal.SIGSTOP)  # it hears of both ends together
    os.kill(found["process"], signal.SIGKILL)
    until(lambda: not is_alive(found["process"]))
    started.kill()
    started.wait()
    os.kill(found["parent"], signal.SIGCONT)
    again, *_ = shared.run("prune")
    assert again["forked"] and again["parent"] == found["parent"]


@pytest.mark.slow
def test_a_stage_ends_with_its_server_and_says_so(own):
    started, found = own.waiting("vanilla")
    os.kill(found["parent"], signal.SIGKILL)
    assert started.wait(timeout=20) == 1
    assert started.stderr is not None and "the fork server was ended" in started.stderr.read()
    assert not is_alive(found["process"]) and own.left("vanilla")
    (own.address.with_name("99999999.socket")).touch()
    again, code, *_ = own.run("prune")  # finds a socket that nobody listens on
    assert code == 0 and not again["forked"]
    until(lambda: own.run("prune")[0]["forked"])
    assert not (own.address.with_name("99999999.socket")).exists()
    os.kill(own.found("prune")["parent"], signal.SIGTERM)
    until(lambda: not own.address.exists())


@pytest.mark.slow
def test_everything_ends_with_the_owner(own):
    started, found = own.waiting("vanilla")
    own.owner.kill()
    until(lambda: not is_alive(found["process"]) and not is_alive(found["parent"]))
    assert started.wait(timeout=20) == 143 and own.left("vanilla") and not own.address.exists()


def test_other_settings_of_libraries_are_for_a_process_of_its_own(shared):
    found, code, *_ = shared.run("prune", HF_HUB_OFFLINE="0", EFFACE_WORD="x")
    assert code == 0 and not found["forked"]


@pytest.mark.parametrize("variables", [{forkserver.OWNER: "off"}, {"DVC_STAGE": ""}])
def test_without_dvc_or_when_told_so_a_stage_neither_looks_for_a_server_nor_starts_one(shared, variables):
    assert not shared.run("prune", **variables)[0]["forked"]
    with an_owner() as other:
        alone = Project(shared.folder, other)
        assert not alone.run("prune", **variables)[0]["forked"]
        assert not alone.address.exists()


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"efface-{os.getuid()}").mkdir(mode=0o755)
    assert forkserver.address_of(1) is None
    (tmp_path / f"efface-{os.getuid()}").rmdir()
    (tmp_path / f"efface-{os.getuid()}").touch()
    assert forkserver.address_of(1) is None
