"""States of requests by the weights in the registry, and one command at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efface.errors import ArtifactError
from tasks.requests.intake import RequestError
from tasks.requests.state import (
    RequestState,
    production_lock,
    read_states,
    reconcile,
    write_state,
)

DONE = RequestState(
    status="done",
    run="r",
    subjects=["a"],
    registered_model="efface-a-b",
    version=2,
    model_digest="d2",
    certificate="c",
    time="t",
)
PROJECT = Path(__file__).resolve().parents[3]


def test_a_damaged_state_is_named(tmp_path):
    write_state(tmp_path, "A", DONE)
    assert read_states(tmp_path) == {"A": DONE}
    path = tmp_path / "requests" / "state" / "A.json"
    path.write_text(path.read_text().replace('"done"', '"fine"'))
    with pytest.raises(ArtifactError) as error:
        read_states(tmp_path)
    assert "A.json" in str(error.value) and "status" in str(error.value)


@pytest.mark.parametrize(
    ("name", "production", "candidate", "status"),
    [
        ("efface-a-b", {"d1", "d2", "d3"}, None, "done"),
        ("efface-a-b", {"d1"}, None, "needs-attention"),
        ("efface-a-b", {"d1"}, "d2", "candidate"),
        # another model of the same version number, or another registered model: it forgot no one of them
        ("efface-a-b", {"e1", "e2"}, None, "needs-attention"),
        ("another", {"d1", "d2"}, None, "needs-attention"),
        ("another", {"d1"}, "d2", "needs-attention"),
    ],
)
def test_a_request_is_done_only_by_the_weights_that_forgot_it(name, production, candidate, status):
    state = reconcile({"A": DONE}, name, production, candidate)["A"]
    assert state.status == status
    assert bool(state.reasons) is (status == "needs-attention")


def test_a_state_without_a_digest_is_not_done():
    state = DONE.model_copy(update={"model_digest": None})
    assert reconcile({"A": state}, "efface-a-b", {"d1", "d2"}, None)["A"].status == "needs-attention"


@pytest.mark.parametrize("status", ["needs-attention", "withdrawn"])
def test_a_failed_or_withdrawn_request_is_not_done_by_any_model(status):
    state = RequestState(status=status, subjects=["a"], reasons=["forget"], time="t")
    assert reconcile({"A": state}, "efface-a-b", {"d1", "d2"}, "d3") == {"A": state}


def test_one_process_at_a_time_holds_the_production_model(tmp_path):
    with production_lock(tmp_path, "run"):
        with pytest.raises(RequestError) as error, production_lock(tmp_path, "promote"):
            pass
        assert f"run, process {os.getpid()}" in str(error.value)
    with production_lock(tmp_path, "promote"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom tasks.requests.state import production_lock\n"
        "with production_lock(pathlib.Path(sys.argv[1]), 'run'): os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, check=False)
    assert process.returncode == -9
    with production_lock(tmp_path, "promote"):
        pass
