"""A run holds its file while its process lives, and is found by a worker when it does not."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

from flows import running

PROJECT = Path(__file__).resolve().parents[2]


def test_a_run_is_left_behind_only_when_its_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "_held", [])
    ours, theirs = uuid4(), uuid4()
    running.note(None, SimpleNamespace(id=ours), None)
    code = (
        "import os, sys; from types import SimpleNamespace; from flows import running;"
        f"running.note(None, SimpleNamespace(id='{theirs}'), None);"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    assert running.left_behind() == []
    child.kill()
    child.wait()
    assert running.left_behind() == [theirs]


def test_no_run_was_ever_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert running.left_behind() == []
