"""What is current, by DVC's word and by what the flow has changed since."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from flows.ledger import Ledger, ProjectError, StageFacts

PROJECT = Path(__file__).resolve().parents[2]
FACTS = {
    "a": StageFacts(frozenset(), gpu=False),
    "b": StageFacts(frozenset({"a"}), gpu=True),
    "c": StageFacts(frozenset({"b"}), gpu=True),
}


def lock(**hashes: str) -> None:
    stages = "".join(
        f"  {name}:\n    cmd: make {name}\n    outs:\n    - path: {name}.txt\n      md5: {md5}\n"
        for name, md5 in hashes.items()
    )
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n{stages}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock(a="a1", b="b1", c="c1")


def test_dvc_says_what_is_stale(folder):
    ledger = Ledger(FACTS, {"b"})
    assert [name for name in FACTS if ledger.is_current(name)] == ["a", "c"]


def test_a_stage_that_made_something_else_makes_its_readers_stale(folder):
    ledger = Ledger(FACTS, {"a"})
    lock(a="a2", b="b1", c="c1")
    ledger.finished("a")
    assert [name for name in FACTS if ledger.is_current(name)] == ["a", "c"]


def test_a_stage_that_made_the_same_again_does_not(folder):
    ledger = Ledger(FACTS, {"a"})
    ledger.finished("a")
    assert [name for name in FACTS if ledger.is_current(name)] == ["a", "b", "c"]


def test_a_stage_runs_alone_if_every_other_comes_before_or_after_it(folder):
    assert all(Ledger(FACTS, set()).runs_alone(name) for name in FACTS)
    forked = FACTS | {"d": StageFacts(frozenset({"a"}), gpu=True)}
    ledger = Ledger(forked, {"d"})
    assert [name for name in forked if ledger.runs_alone(name)] == ["a"]


def test_in_this_project_the_stages_everything_rests_on_run_alone(monkeypatch):
    monkeypatch.chdir(PROJECT)
    ledger = Ledger.open()
    assert {name for name in ledger.stages if ledger.runs_alone(name)} == {
        "benchmark",
        "prepare",
        "base",
        "report",
    }


def test_the_fingerprint_changes_with_anything_dvc_recorded(folder):
    ledger = Ledger(FACTS, set())
    before = ledger.fingerprint("a")
    assert before == Ledger(FACTS, set()).fingerprint("a")
    lock(a="a2", b="b1", c="c1")
    assert ledger.fingerprint("a") != before
    lock(a="a1", b="b1", c="c1")
    assert ledger.fingerprint("a") == before
    text = Path("dvc.lock").read_text()
    for old, new in (("make a", "make a fast"), ("a.txt", "x.txt")):
        Path("dvc.lock").write_text(text.replace(old, new))
        assert ledger.fingerprint("a") != before


def test_outputs_are_read_from_the_lock_file_or_empty(folder):
    assert Ledger(FACTS, set()).outputs("b") == {"b.txt": "b1"}
    Path("dvc.lock").unlink()
    assert Ledger(FACTS, set(FACTS)).outputs("b") == {}


def test_a_target_brings_what_it_needs(folder):
    ledger = Ledger(FACTS, set())
    assert ledger.upstream("b") == {"a", "b"}
    with pytest.raises(ProjectError, match="no stage 'x'; expected one of: a, b, c"):
        ledger.upstream("x")


def test_another_dvc_at_work_is_named(monkeypatch, tmp_path):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with open(".dvc/tmp/lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(f" {os.getpid()}\n")
        handle.flush()
        message = in_a_child("from flows.ledger import Ledger; Ledger.open()", tmp_path)
    assert f"another DVC process is at work in this project (process {os.getpid()})" in message


def test_notes_that_a_killed_dvc_left_half_written_are_dropped(monkeypatch, tmp_path, caplog):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: 'true'\n    outs: [a.txt]\n")
    notes = tmp_path / ".dvc/tmp/rwlock"
    notes.write_text('{"read": {')
    ledger = Ledger.open()
    assert not ledger.is_current("a")
    assert "half written" in caplog.text
    assert not notes.exists() or json.loads(notes.read_text()) is not None
    notes.write_text('{"read": {}}')
    Ledger.open()
    assert notes.exists()


def test_a_broken_dvc_yaml_is_one_error(monkeypatch, tmp_path):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: x\n    deps: 3\n")
    with pytest.raises(ProjectError, match=r"DVC cannot read this project: .*dvc\.yaml"):
        Ledger.open()


def in_a_child(code: str, folder: Path) -> str:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr
