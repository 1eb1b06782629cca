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
from tasks.requests.state import holding
from tests.made_requests import NAMES, PEOPLE, make_office

PROJECT = Path(__file__).resolve().parents[2]
DUE = str(dt.date.today() + dt.timedelta(days=30))
ASKED = ("--reason", "they asked", "--legal-basis", "GDPR Art. 17", "--requester", "case 7")


@pytest.fixture
def office(tmp_path, monkeypatch):
    database = tmp_path / "none.db"
    database.touch()
    found = make_office(tmp_path / "project", database)
    (found.root.parent / "mlflow.db").unlink()
    (found.root.parent / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    monkeypatch.chdir(found.root.parent)
    monkeypatch.setenv("COLUMNS", "200")
    return found


def said(*command, code=0):
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_a_request_is_written_and_listed(office):
    assert "data/requests/A.yaml written" in said(
        "add", "--id", "A", "--subject", PEOPLE[1], *ASKED, "--due", DUE
    )
    said("add", "--select-name", NAMES[PEOPLE[2]], *ASKED, "--due", DUE)
    today = str(dt.date.today())
    assert (office.root / "requests" / f"{today}-01.yaml").is_file()
    assert said("list").count("pending") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--subject", PEOPLE[1], "--due", "2020-01-01", "--received", "2019-01-01"), "which is past"),
        (("--subject", PEOPLE[1], "--due", "2020-01-01"), "due is 2020-01-01, before received"),
        (("--subject", PEOPLE[1], "--due", "soon"), "add: due is 'soon': input should be a valid date"),
        (("--subject", "fictitious/999", "--due", DUE), "nobody is called fictitious/999"),
        (("--select-name", "Nobody*", "--due", DUE), "the selector fits none of 8 people"),
        (("--due", DUE), "it has neither of subjects and selector"),
        (
            ("--select-id", "", "--due", DUE),
            "add: selector.id is '': string should have at",
        ),
    ],
)
def test_a_bad_request_is_refused_and_nothing_written(office, options, words):
    assert words in said("add", *options, *ASKED, code=2)
    assert not (office.root / "requests").exists()


def test_a_late_request_is_taken_if_one_says_so_and_shown_as_overdue(office):
    late = ("--subject", PEOPLE[1], "--due", "2020-01-01", "--received", "2019-01-01", "--late")
    said("add", "--id", "A", *late, *ASKED)
    assert "2020-01-01 overdue" in said("list")


def test_a_second_request_for_one_person_is_refused(office):
    said("add", "--id", "A", "--subject", PEOPLE[1], *ASKED, "--due", DUE)
    words = said("add", "--id", "B", "--subject", PEOPLE[1], *ASKED, "--due", DUE, code=2)
    assert f"request B: {PEOPLE[1]} is named by request A too" in words
    assert "never rewritten" in said("add", "--id", "A", "--subject", PEOPLE[2], *ASKED, "--due", DUE, code=2)


def test_a_file_that_cannot_be_read_is_listed_with_the_reason(office):
    office.ask("A", PEOPLE[1])
    office.ask("B", PEOPLE[2]).write_text("subjects: [")
    shown = said("list")
    assert "pending" in shown and re.search(r"B .*invalid.*not readable as YAML", shown)


def test_while_another_holds_the_production_model_nothing_is_done(office):
    for command in (("promote",), ("rollback", "--reason", "x"), ("retry", "A")):
        with holding(office.root.parent, "a run of requests"):
            assert "another run holds the production model (a run of requests" in said(*command, code=2)
    assert not (office.root.parent / "mlflow.db").exists()


def test_a_run_while_another_holds_the_production_model_changes_nothing(office):
    from flows.requests.flow import requests

    office.ask("A", PEOPLE[1])
    with holding(office.root.parent, "promoting"):
        state = requests.fn()
    assert state.is_failed() and "another run holds the production model (promoting, process" in state.message
    assert "every request is kept" in state.message and not (office.root.parent / "mlflow.db").exists()
    assert "pending" in said("list")


def test_mlflow_out_of_reach_is_one_line_and_nothing_is_changed(office, monkeypatch):
    office.ask("A", PEOPLE[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush-hush@127.0.0.1:{port}")
    for command in (("status",), ("promote",), ("rollback", "--reason", "x")):
        words = said(*command, code=2)
        assert f"error: MLflow at http://***@127.0.0.1:{port} does not answer" in words
        assert "every request is kept" in words and "hush-hush" not in words
    assert "pending" in said("list")


def test_without_certificates_there_is_nothing_wrong_with_them(office):
    assert "0 certificates hold" in said("verify")
    assert "request A has no certificate" in said("certificate", "A", code=2)


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\nsys.argv = ['requests', '--help']\n"
        "try: runpy.run_module('flows.requests', run_name='__main__')\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "prefect", "mlflow", "dvc", "pandas", "pydantic"}


def test_the_library_of_the_same_name_is_found_when_prefect_loads_a_flow_by_its_file():
    code = (
        "import sys\nfrom prefect.utilities.importtools import import_object\n"
        "import_object('flows/pipeline.py:pipeline')\nassert 'requests' not in sys.modules\n"
        "import requests\nprint(requests.Session.__module__, requests.exceptions.ConnectionError.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["requests.sessions", "ConnectionError"], done.stderr
