"""A study's cells on a cluster: real Dask or Ray workers of this machine, where the package is installed."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.futures import wait
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runners import runner, running_on
from flows.workspaces import StudyError

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}

PROGRAM = """
import json, sys
from prefect import flow
from flows.runners import runner, running_on
from flows.study import _row, run_cell

@flow(log_prints=False)
def cells(kind: str, folders: list[str]) -> list:
    with running_on(runner(kind, 2)):
        futures = [run_cell.submit(folder, folder, ["made"], 2, None) for folder in folders]
        futures += [run_cell.submit("below", folders[0], ["made"], 2, world) for world in futures[:2]]
        rows = [_row("", future) for future in futures]
    return [(row.outcome, str(future.state.message)) for row, future in zip(rows, futures, strict=True)]

if __name__ == "__main__":
    print(json.dumps(cells(sys.argv[1], sys.argv[2:])))
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


def at(server):
    """Flows of this process report there; their log lines do not, or its end would wait for a server gone."""
    return temporary_settings({PREFECT_API_URL: server.url, PREFECT_LOGGING_TO_API_ENABLED: False})


@pytest.mark.slow
def test_a_flow_runs_its_tasks_where_it_is_told(server):
    """A worker starts the flow as it stands: with Prefect's own runner, which knows no limit."""
    going, most = [], []

    @task(persist_result=False)
    def cell(number: int) -> None:
        going.append(number)
        most.append(len(going))
        time.sleep(0.2)
        going.remove(number)

    @flow
    def told(workers: int | None) -> None:
        with contextlib.nullcontext() if workers is None else running_on(runner("threads", workers)):
            wait([cell.submit(number) for number in range(4)])

    with at(server):
        told(2)
        assert max(most) == 2
        told(None)
        assert max(most) > 2, "the limit was not the runner's"


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACKAGES)
def test_a_cluster_that_is_not_there_is_told_within_seconds(kind, server, monkeypatch):
    pytest.importorskip(PACKAGES[kind])
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", f"tcp://{address}")
        monkeypatch.setenv("RAY_ADDRESS", address)

        @flow
        def told() -> None:
            with running_on(runner(kind, 1)):
                pass

        started, message = time.monotonic(), rf"answers at (tcp://)?{address} .*refused.*; start it, or unset"
        with at(server), pytest.raises(StudyError, match=message):
            told()
        assert time.monotonic() - started < 60


def test_outside_of_a_flow_there_is_nothing_to_run_on():
    with pytest.raises(RuntimeError, match="no flow runs here"), running_on(runner("threads", 1)):
        pass


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
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    below = ["cached", "not run"]  # what the first world's cell needs is there; the second's world failed
    assert [outcome for outcome, _ in found] == ["ran", "failed", "ran", *below]
    assert "error - it broke" in found[1][1]
    assert all((tmp_path / i / "made.txt").exists() for i in "02")
