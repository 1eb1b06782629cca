"""What make cannot set up, it names at the first command, before anything is installed."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A git repository with what `make` reads, out of reach of a `make test VENV=...` around these tests."""
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VENV"):
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def refusal(clone, *arguments, **environment):
    """What a failing `make run` prints, and that it installed nothing."""
    make = shutil.which("make")
    completed = subprocess.run(
        [make, "run", *arguments], cwd=clone, capture_output=True, text=True, env=environment or None
    )
    assert completed.returncode != 0 and not (clone / ".venv").exists()
    return completed.stdout


def python(folder, version):
    """A program that answers like a Python of that version."""
    program = folder / "some-python"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}"\nexit 1\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("version", ["3.9.18", "3.14.1"])
def test_a_python_that_is_not_supported(clone, version):
    text = refusal(clone, f"PYTHON={python(clone, version)}")
    assert version in text and "3.11, 3.12 or 3.13" in text


def test_a_python_that_is_not_there(clone):
    text = refusal(clone, "PYTHON=python0.0")
    assert "python0.0" in text and "3.11, 3.12 or 3.13" in text


def test_no_space(clone):
    assert "expected 1000000" in refusal(clone, "SPACE=1000000")


def test_no_git(clone):
    programs = clone / "programs"
    programs.mkdir()
    for name in ("sh", "sed"):
        (programs / name).symlink_to(shutil.which(name))
    assert "install git" in refusal(clone, PATH=str(programs))


def test_no_repository(clone):
    shutil.rmtree(clone / ".git")
    assert "git init" in refusal(
        clone, PATH=f"{Path(shutil.which('git')).parent}", GIT_CEILING_DIRECTORIES=str(clone.parent)
    )


def test_a_port_that_the_server_cannot_take(clone):
    command = ["make", "READY=ready", "-o", "ready", "server"]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        for port in (str(busy.getsockname()[1]), "99999", "http"):
            completed = subprocess.run([*command, f"PORT={port}"], cwd=clone, capture_output=True, text=True)
            assert completed.returncode != 0
            assert f"port {port} " in completed.stderr and "PORT=4300" in completed.stderr


def test_a_worker_started_in_the_background_can_be_interrupted(clone):
    """A shell lets background jobs ignore SIGINT, by which Prefect stops a worker."""
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    prefect = programs / "prefect"
    prefect.write_text(
        f"#!{sys.executable}\nimport signal\nprint(signal.getsignal(signal.SIGINT) != signal.SIG_IGN)\n"
    )
    prefect.chmod(0o755)
    (clone / ".venv" / ".ready").touch()
    completed = subprocess.run(
        ["make", "--silent", "worker"],
        cwd=clone,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert completed.stdout == "True\n", completed.stderr
