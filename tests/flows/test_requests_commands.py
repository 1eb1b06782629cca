"""The commands of requests, in this process; the run itself is in test_requests.py."""

import datetime as dt
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.requests.__main__ import app
from tasks.requests.certificates import KEY_VARIABLE
from tasks.requests.state import production_lock
from tests.requests_project import NAMES, PEOPLE, make_project

PROJECT = Path(__file__).resolve().parents[2]
DUE = str(dt.date.today() + dt.timedelta(days=30))
OPTIONS = ("--reason", "they asked", "--legal-basis", "GDPR Art. 17", "--requester", "case 7")


@pytest.fixture
def project(tmp_path, monkeypatch):
    database = tmp_path / "none.db"
    database.touch()
    project = make_project(tmp_path / "project", database)
    (project.root.parent / "mlflow.db").unlink()
    (project.root.parent / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    monkeypatch.chdir(project.root.parent)
    monkeypatch.setenv("COLUMNS", "200")
    return project


def output_of(*command, code=0):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_request_is_written_and_listed(project):
    assert "data/requests/A.yaml written" in output_of(
        "add", "--id", "A", "--subject", PEOPLE[1], *OPTIONS, "--due", DUE
    )
    output_of("add", "--select-name", NAMES[PEOPLE[2]], *OPTIONS, "--due", DUE)
    today = str(dt.date.today())
    assert (project.root / "requests" / f"{today}-01.yaml").is_file()
    assert output_of("list").count("pending") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--subject", PEOPLE[1], "--due", "2020-01-01", "--received", "2019-01-01"), ["due", "--late"]),
        (("--subject", PEOPLE[1], "--due", "2020-01-01", "--late"), ["--late", "--received"]),
        (("--subject", PEOPLE[1], "--due", "soon"), ["due", "'soon'"]),
        (("--subject", "fictitious/999", "--due", DUE), ["subjects", "fictitious/999"]),
        (("--select-name", "Nobody*", "--due", DUE), ["selector", "8 people"]),
        (("--select-id", "*", "--due", DUE), ["8 people"]),
        (("--due", DUE), ["subjects", "selector"]),
        (("--select-id", "", "--due", DUE), ["selector.id", "''"]),
    ],
)
def test_an_invalid_request_is_refused_and_nothing_written(project, options, words):
    output = output_of("add", *options, *OPTIONS, code=2)
    assert all(word in output for word in words)
    assert not (project.root / "requests").exists()


def test_a_late_request_needs_a_flag_and_is_shown_as_overdue(project):
    late = ("--subject", PEOPLE[1], "--due", "2020-01-01", "--received", "2019-01-01", "--late")
    output_of("add", "--id", "A", *late, *OPTIONS)
    assert re.search(r"2020-01-01 .* overdue", output_of("list"))


def test_a_second_request_for_one_person_is_refused(project):
    output_of("add", "--id", "A", "--subject", PEOPLE[1], *OPTIONS, "--due", DUE)
    output = output_of("add", "--id", "B", "--subject", PEOPLE[1], *OPTIONS, "--due", DUE, code=2)
    assert "request B" in output and PEOPLE[1] in output and "request A" in output
    output = output_of("add", "--id", "A", "--subject", PEOPLE[2], *OPTIONS, "--due", DUE, code=2)
    assert "A.yaml" in output


def test_a_file_that_cannot_be_read_is_listed_with_the_reason_and_can_be_withdrawn(project):
    project.add("A", PEOPLE[1])
    project.add("B", PEOPLE[2]).write_text("subjects: [")
    output = output_of("list")
    assert "pending" in output and re.search(r"B .*invalid.* B: .*B\.yaml", output)
    output_of("withdraw", "B", "--reason", "sent twice")
    assert re.search(r"B .*withdrawn.* B: sent twice", output_of("list"))
    assert "request B is pending again" in output_of("retry", "B")


def test_eighty_columns_cut_no_id(project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    project.add("2026-11-21-01", PEOPLE[1])
    assert re.search(r"│ 2026-11-21-01 │ 2099-02-01 │ 1 │ │ pending │ │", output_of("list"))


def test_terminal_markup_in_a_request_is_text(project):
    project.add("A", "[/red]fictitious/001", reason="[bold]x[/]")
    assert "[/red]fictitious/001" in output_of("list")


def test_while_another_command_holds_the_production_model_nothing_is_done(project):
    for command in (("promote",), ("rollback", "--reason", "x"), ("retry", "A")):
        with production_lock(project.root.parent, "a run of requests"):
            assert "a run of requests, process" in output_of(*command, code=2)
    assert not (project.root.parent / "mlflow.db").exists()


def test_a_run_while_another_command_holds_the_production_model_changes_nothing(project):
    from flows.requests.flow import requests

    project.add("A", PEOPLE[1])
    with production_lock(project.root.parent, "promote"):
        state = requests.fn()
    assert state.is_failed() and "promote, process" in state.message
    assert not (project.root.parent / "mlflow.db").exists()
    assert "pending" in output_of("list")


def test_a_run_with_a_key_that_cannot_sign_ends_before_it_trains_anything(project, monkeypatch):
    from flows.requests.flow import requests

    project.add("A", PEOPLE[1])
    key = project.root.parent / "certificates.key"
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    for content in (None, "no key"):
        if content is not None:
            key.write_text(content)
        state = requests.fn()
        assert state.is_failed() and str(key) in state.message and KEY_VARIABLE in state.message
    assert not (project.root.parent / ".requests").exists()
    assert not (project.root.parent / "mlflow.db").exists()


def test_mlflow_out_of_reach_is_one_line_and_nothing_is_changed(project, monkeypatch):
    project.add("A", PEOPLE[1])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush-hush@127.0.0.1:{port}")
    for command in (("status",), ("promote",), ("rollback", "--reason", "x")):
        output = output_of(*command, code=2)
        assert f"error: MLflow at http://***@127.0.0.1:{port}" in output and "hush-hush" not in output
    assert "pending" in output_of("list")


def test_stamps_need_a_server_and_its_root_certificates(project):
    assert "requests.timestamp_server is null" in output_of("stamp", code=2)
    path = project.root.parent / "params.yaml"
    path.write_text(
        path.read_text().replace("\nrequests: ", "\nrequests:\n  timestamp_server: http://127.0.0.1:9\n#")
    )
    output = output_of("stamp", code=2)
    assert "requests.timestamp_server" in output and "timestamp_roots.pem" in output


def test_without_certificates_there_is_nothing_wrong_with_them(project):
    assert "0 certificates hold" in output_of("verify")
    assert "request A has no certificate" in output_of("certificate", "A", code=2)


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\nsys.argv = ['requests', '--help']\n"
        "try: runpy.run_module('flows.requests', run_name='__main__')\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in process.stderr.split()}
    assert not loaded & {"torch", "prefect", "mlflow", "dvc", "pandas", "pydantic"}
