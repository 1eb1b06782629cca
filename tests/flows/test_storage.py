"""What one copy of a project shares, another fetches; a storage that fails says why and costs nothing."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import storage
from flows.exchange import waits
from flows.storage import REMOTE, StorageError, fetch, share

PROJECT = Path(__file__).resolve().parents[2]
STAGES = """
stages:
  first:
    cmd: mkdir made && cp in.txt made/a.txt && echo ran >> log
    deps: [in.txt]
    outs: [made]
  second:
    cmd: cat made/a.txt made/a.txt > twice.txt && echo ran >> log
    deps: [made]
    outs: [twice.txt]
  other:
    cmd: echo other > other.txt && echo ran >> log
    deps: [in.txt]
    outs: [other.txt]
"""

LIMIT = 1 << 20


def make_project(folder: Path) -> Path:
    from dvc.repo import Repo

    folder.mkdir()
    Repo.init(str(folder), no_scm=True).close()
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "in.txt").write_text("data\n" * 2000)
    return folder


def reproduce(folder: Path, *targets: str) -> None:
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        repo.reproduce(list(targets) or None)


def ran(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty shared folder, named in the environment, and a project that has made everything."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv(REMOTE, str(shared))
    monkeypatch.chdir(make_project(tmp_path / "here"))
    reproduce(Path())
    return shared


def test_another_copy_fetches_all_and_makes_nothing(place, tmp_path, monkeypatch):
    assert share() > 0
    there = make_project(tmp_path / "there")
    monkeypatch.chdir(there)
    assert sorted(fetch()) == ["first", "other", "second"]
    assert (there / "twice.txt").read_text() == "data\n" * 4000
    reproduce(there)
    assert ran(there) == 0
    assert fetch() == []
    assert share() == 0
    assert "shared" not in (there / ".dvc" / "config").read_text()  # the address is in no file
    assert not (there / ".dvc" / "config.local").exists()


def test_only_what_the_target_needs_is_fetched(place, tmp_path, monkeypatch):
    share()
    monkeypatch.chdir(make_project(tmp_path / "there"))
    assert fetch("second") == ["first", "second"]
    assert not Path("other.txt").exists()
    with pytest.raises(StorageError, match=r"no stage 'third'; expected one of: first, other, second"):
        fetch("third")


def test_what_nobody_made_stays_for_this_machine(place, tmp_path, monkeypatch):
    share()
    there = make_project(tmp_path / "there")
    monkeypatch.chdir(there)
    (there / "in.txt").write_text("other data\n")
    assert fetch() == []
    reproduce(there, "second")
    assert ran(there) == 2
    assert (there / "twice.txt").read_text() == "other data\n" * 2


def test_a_lost_or_changed_output_comes_back(place):
    share()
    Path("twice.txt").write_text("changed")
    shutil.rmtree("made")
    shutil.rmtree(".dvc/cache")
    assert fetch() == ["first", "other", "second"]  # other is here, and back in DVC's cache
    assert Path("twice.txt").read_text() == "data\n" * 4000


def test_a_remote_of_the_projects_own_configuration_is_known_by_its_name(place, monkeypatch):
    with Path(".dvc/config").open("a") as config:
        config.write(f"['remote \"office\"']\n    url = {place}\n")
    monkeypatch.setenv(REMOTE, "office")
    assert share() > 0
    assert any(place.rglob("*"))


def test_a_folder_that_is_not_mounted_is_not_made(place, monkeypatch):
    monkeypatch.setenv(REMOTE, str(place / "not" / "there"))
    for call in (fetch, share):
        with pytest.raises(StorageError, match=r"not/there is not there; is it mounted\?.*mkdir -p"):
            call()
    assert list(place.iterdir()) == []


def test_a_host_that_does_not_answer_is_told_in_seconds_and_without_the_password(place, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv(REMOTE, f"ssh://me:hush-hush@127.0.0.1:{port}/srv/efface")
    with pytest.raises(StorageError, match=r"ssh://\*\*\*@127.0.0.1.* cannot be reached .*nothing is lost"):
        share()


def test_a_storage_that_lacks_its_package_says_what_to_install(place, monkeypatch):
    if any(Path(path, "dvc_s3").is_dir() for path in sys.path):
        pytest.skip("dvc-s3 is installed")
    monkeypatch.setenv(REMOTE, "s3://bucket/efface")
    with pytest.raises(StorageError, match=r"cannot be used: .*pip install dvc-s3"):
        fetch()


def test_without_the_variable_there_is_no_storage(place, monkeypatch):
    monkeypatch.delenv(REMOTE)
    assert storage.address() is None
    with pytest.raises(StorageError, match="EFFACE_REMOTE is not set"):
        share()


def test_a_full_storage_keeps_what_arrived_and_takes_the_rest_later(place):
    """A limit on the size of files stands for the full disk: writing fails half-way through one."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))  # noqa: E731
    Path("in.txt").write_text("small\n")
    Path("large.txt").write_text("x" * 3 * LIMIT)
    (Path("dvc.yaml")).write_text(STAGES.replace("cp in.txt made/a.txt", "cp in.txt large.txt made"))
    reproduce(Path(), "first")
    command = [sys.executable, "-m", "flows.storage", "push"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, env=environment, preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert "did not take everything (it is full)" in line
    assert "Go on from there with: python -m flows.storage push" in line
    whole = "x" * 3 * LIMIT
    held = [path for path in place.rglob("*") if path.is_file() and path.stat().st_size >= LIMIT]
    assert all(path.read_text() == whole or path.name.startswith(".") for path in held)
    assert share() > 0
    assert any(path.read_text() == whole for path in place.rglob("*") if path.is_file())


def test_the_project_of_a_run_of_requests_is_shared_from_where_one_is(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert share("here") > 0
    broken_off = storage._broken_off(
        str(place), "take", ".requests/A-1", OSError(28, "No space left on device")
    )
    assert str(broken_off).endswith(
        "Go on from there with: python -m flows.storage push --folder .requests/A-1"
    )


def test_waits_between_tries_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("EFFACE_RETRY_SECONDS", "1,2.5")
    assert waits() == [1.0, 2.5]
    monkeypatch.setenv("EFFACE_RETRY_SECONDS", "")
    assert waits() == []
    monkeypatch.setenv("EFFACE_RETRY_SECONDS", "soon")
    with pytest.raises(ValueError, match="EFFACE_RETRY_SECONDS is 'soon'"):
        waits()
