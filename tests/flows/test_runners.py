"""A study's cells on a cluster: real Dask or Ray workers of this machine, where the package is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runners import runner
from flows.workspaces import StudyError

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}

PROGRAM = """
import json, sys
from prefect import flow
from flows.runners import runner
from flows.study import run_cell

@flow(log_prints=False)
def cells(folders: list[str]) -> list:
    futures = [run_cell.submit(folder, folder, ["made"], 2, None) for folder in folders]
    for future in futures:
        future.wait()
    return [future.result(raise_on_failure=False) for future in futures]

if __name__ == "__main__":
    found = cells.with_options(task_runner=runner(sys.argv[1], 2))(sys.argv[2:])
    print(json.dumps([str(each) if isinstance(each, Exception) else each["outcome"] for each in found]))
"""


def test_threads_need_neither_package_nor_server():
    assert isinstance(runner("threads", 3), ThreadPoolTaskRunner)


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_package_that_is_not_here_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(StudyError, match=rf"study.runner is {kind}, .*efface\[{kind}\]"):
        runner(kind, 2)


@pytest.mark.parametrize("kind", PACKAGES)
def test_workers_of_their_own_need_a_server(kind):
    pytest.importorskip(PACKAGES[kind])
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(StudyError, match="set PREFECT_API_URL"):
        runner(kind, 2)


def make_cell(folder: Path, command: str) -> str:
    from dvc.repo import Repo

    folder.mkdir()
    Repo.init(str(folder), no_scm=True).close()
    (folder / "dvc.yaml").write_text(f"stages:\n  made:\n    cmd: {command}\n    outs: [made.txt]\n")
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", PACKAGES)
def test_cells_run_on_a_cluster_and_one_that_fails_leaves_the_others(kind, server, tmp_path):
    pytest.importorskip(PACKAGES[kind])
    commands = ["echo $$ > made.txt", "echo 'error - it broke' >&2; exit 3", "echo $PPID > made.txt"]
    folders = [make_cell(tmp_path / str(i), f'"{command}"') for i, command in enumerate(commands)]
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), kind, *folders],
        cwd=PROJECT,
        env={
            **os.environ,
            "PREFECT_API_URL": server.url,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, third = json.loads(done.stdout.splitlines()[-1])
    assert (first, third) == ("ran", "ran")
    assert "error - it broke" in second
    assert all((tmp_path / i / "made.txt").exists() for i in "02")
