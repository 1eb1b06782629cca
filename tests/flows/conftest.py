"""One real Prefect server for all tests that need one; its start is the slowest part of many of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PROJECT = Path(__file__).resolve().parents[2]


class Server:
    """A Prefect server on a free port of this machine, with a database that outlives it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        environment.pop("PREFECT_API_URL", None)
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], cwd=PROJECT, env=environment, stdout=quiet, stderr=quiet
        )
        wait_until(self.answers, 280)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Any:
        return self._asked(lambda: httpx.get(f"{self.url}/{path}", timeout=30))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._asked(lambda: httpx.post(f"{self.url}/{path}", json=body, timeout=30))

    def patch(self, path: str, body: dict[str, Any]) -> None:
        self._asked(lambda: httpx.patch(f"{self.url}/{path}", json=body, timeout=30))

    def _asked(self, ask: Callable[[], httpx.Response]) -> Any:
        """The answer; a server that is busy is asked again, as Prefect's own client does."""
        end = time.monotonic() + 180
        while True:
            try:
                answer = ask()
            except httpx.TimeoutException:
                assert time.monotonic() < end, "the server does not answer"
                continue
            if answer.status_code != 503 or time.monotonic() > end:
                return answer.raise_for_status().json() if answer.content else None
            time.sleep(1)


def wait_until(true: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "") -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen in time. {why()}"
        time.sleep(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """The server, up."""
    found = Server(tmp_path_factory.mktemp("prefect-server"))
    try:
        found.start()
        yield found
    finally:
        found.stop()
