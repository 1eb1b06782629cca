"""SIGTERM frees the production model within seconds, whatever Prefect waits for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.watcher import MARK, marked
from tasks.requests.state import production_lock

PROJECT = Path(__file__).resolve().parents[2]
CODE = """
import sys, time
from pathlib import Path
from flows import children
from flows.requests import stopping
from tasks.requests.state import production_lock

stopping._SERVER_SECONDS = 1.0
with stopping.at_once(), production_lock(Path(), "a run of requests"):
    try:
        child = "import signal, time; {}; print('up', flush=True); time.sleep(300)"
        children._run([sys.executable, "-c", child], "a stage", lambda line: Path("up").touch())
    except BaseException as error:
        Path("caught").write_text(type(error).__name__)
        time.sleep(300)  # as Prefect does while its server does not answer
"""
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("child", "server", "number"),
    [
        ("pass", None, signal.SIGINT),
        (IGNORES, None, signal.SIGTERM),
        ("pass", "http://127.0.0.1:9/api", signal.SIGTERM),
    ],
)
def test_a_run_that_is_told_to_end_ends_with_its_children_and_frees_the_lock(
    tmp_path, monkeypatch, child, server, number
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    mark = f"stopping-{os.getpid()}-{time.monotonic_ns()}"
    added = {MARK: mark, "PYTHONPATH": str(PROJECT), "PREFECT_HOME": str(tmp_path / "prefect")}
    code = CODE.replace("{}", child)
    code = code.replace("stopping._SERVER", "stopping._CHILDREN_SECONDS = 3.0\nstopping._SERVER")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | added | ({"PREFECT_API_URL": server} if server else {}),
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        end = time.monotonic() + 120
        while not (tmp_path / "up").exists():
            assert run.poll() is None and time.monotonic() < end, run.stderr.read()
            time.sleep(0.05)
        run.send_signal(number)
        said = run.communicate(timeout=120)[1]
    assert run.returncode == 128 + number
    assert said.startswith("stopped; the production model is free for others"), said
    assert (tmp_path / "caught").exists() is bool(server), "a server is told"
    with production_lock(tmp_path, "the next"):
        pass
    end = time.monotonic() + 30
    while marked(mark):
        assert time.monotonic() < end, "a child outlived it"
        time.sleep(0.05)


def test_the_handler_of_a_workers_run_is_the_workers(monkeypatch):
    from flows.requests.stopping import at_once

    before = signal.getsignal(signal.SIGTERM)
    with at_once():
        assert signal.getsignal(signal.SIGTERM) != before
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "x")
    with at_once():
        assert signal.getsignal(signal.SIGTERM) == before
