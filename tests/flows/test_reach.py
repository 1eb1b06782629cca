"""A Prefect server that is not there is one line, within seconds."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "command", ["flows.worker", "flows.pipeline", "flows.study", "flows.deploy", "flows.requests run"]
)
def test_an_unreachable_server_is_one_line(command):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_API_URL": f"http://me:hush-hush@127.0.0.1:{port}/api"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: no Prefect server answers at http://***@127.0.0.1:{port}/api")
    assert "start it (make server)" in last
    assert "hush-hush" not in done.stdout + done.stderr
