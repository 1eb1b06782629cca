"""A Prefect server, a worker and a deployment, as `make server`, `make deploy` and `make worker` run them."""

import os
import socket
import subprocess
import sys

import httpx
import pytest

from tests.flows.project import PROJECT, end, make_project, until

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(1800)]


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path / "project")
    for name in ("prefect.yaml", "Makefile"):
        (project.folder / name).write_text((PROJECT / name).read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    project.environment |= {"PORT": str(port), "VENV": str(PROJECT / ".venv")}
    return project


def make(project, target):
    """`make TARGET`, with the environment of this interpreter in place of the one it would create."""
    ready = project.folder / "ready"
    return ["make", f"READY={ready}", f"BIN={os.path.dirname(sys.executable)}", "-o", str(ready), target]


def test_a_worker_runs_a_deployment_and_nothing_else(project, tmp_path):
    options = {"cwd": project.folder, "env": project.environment, "stdin": subprocess.DEVNULL}
    api, processes = f"http://127.0.0.1:{project.environment['PORT']}/api", []

    def up() -> bool:
        try:
            return httpx.get(f"{api}/health", timeout=2).status_code < 500
        except httpx.HTTPError:
            return False

    try:
        processes.append(subprocess.Popen(make(project, "server"), start_new_session=True, **options))
        until(up, 280)
        login = project.read(".prefect/login").strip()
        assert httpx.post(f"{api}/flows/count").status_code == 401
        assert httpx.post(f"{api}/flows/count", auth=tuple(login.split(":"))).status_code == 200
        subprocess.run(make(project, "deploy"), check=True, **options)
        processes.append(subprocess.Popen(make(project, "worker"), start_new_session=True, **options))
        project.environment |= {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": login}
        harmful = f"command=touch {tmp_path / 'touched'}"
        arguments = ("pipeline/pipeline", "-p", "target=prepare", "-jv", harmful, "--watch")
        assert "Completed" in project.run("prefect", "deployment", "run", *arguments)
        assert not (tmp_path / "touched").exists()
        assert "Running stage" not in project.repro("prepare")
    finally:
        for process in reversed(processes):
            end(process)
