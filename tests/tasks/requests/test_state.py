"""What became of requests, and one at a time at the production model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efface.errors import ArtifactError
from tasks.requests.intake import RequestError
from tasks.requests.state import Outcome, agreed, forget_outcome, holding, read_outcomes, write_outcome

DONE = Outcome(status="done", run="r", subjects=["a"], version=2, certificate="d", time="t")
PROJECT = Path(__file__).resolve().parents[3]


def test_an_outcome_is_kept_until_it_is_forgotten(tmp_path):
    write_outcome(tmp_path, "A", DONE)
    assert read_outcomes(tmp_path) == {"A": DONE}
    forget_outcome(tmp_path, "A")
    assert read_outcomes(tmp_path) == {}


def test_a_damaged_outcome_is_named(tmp_path):
    write_outcome(tmp_path, "A", DONE)
    path = tmp_path / "requests" / "state" / "A.json"
    path.write_text(path.read_text().replace('"done"', '"fine"'))
    with pytest.raises(ArtifactError, match=r"A\.json is damaged .*restore it from git"):
        read_outcomes(tmp_path)


@pytest.mark.parametrize(
    ("production", "candidate", "status"),
    [({1, 2, 3}, None, "done"), ({1}, None, "needs-attention"), ({1}, 2, "candidate")],
)
def test_the_registry_says_what_is_in_production(production, candidate, status):
    found = agreed({"A": DONE}, production, candidate)["A"]
    assert found.status == status
    assert bool(found.reasons) is (status == "needs-attention")


def test_a_failed_request_stays_so_whatever_is_in_production():
    failed = Outcome(status="needs-attention", run="r", subjects=["a"], reasons=["forget"], time="t")
    assert agreed({"A": failed}, {1, 2}, 3) == {"A": failed}


def test_only_one_holds_the_production_model_and_says_who(tmp_path):
    with holding(tmp_path, "a run of requests"):
        with pytest.raises(RequestError) as raised:
            holding(tmp_path, "promoting").__enter__()
        assert f"(a run of requests, process {os.getpid()} on " in str(raised.value)
        assert "every request is kept" in str(raised.value)
    with holding(tmp_path, "promoting"):
        pass


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom tasks.requests.state import holding\n"
        "with holding(pathlib.Path(sys.argv[1]), 'a run'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, check=False)
    assert "a run" in (tmp_path / ".efface" / "requests.lock").read_text()
    with holding(tmp_path, "the next"):
        pass
