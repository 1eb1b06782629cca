"""The folder of a run is a DVC project that shares the cache and the remotes of the main one."""

import shutil
from pathlib import Path

from dvc.repo import Repo

from flows.requests.project import make_project
from tests.flows.project import COPIED, PROJECT


def test_a_remote_with_a_relative_address_is_the_same_place_for_the_run(tmp_path, monkeypatch):
    for name in COPIED:
        source, target = PROJECT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc" / "config.local").write_text(
        "[core]\n    no_scm = true\n    remote = office\n['remote \"office\"']\n    url = ../../storage\n"
    )
    folder = make_project(Path(".requests/A-1"), {}, without=["base", "vanilla", "report", "retrained"])
    with Repo(str(tmp_path)) as main, Repo(str(folder)) as run:
        places = [repo.cloud.get_remote().path for repo in (main, run)]
        caches = [repo.cache.local.path for repo in (main, run)]
    assert places == [str(tmp_path.parent / "storage")] * 2
    assert caches[0] == caches[1]
