"""The table of requests one after the other: rounds that failed, were killed, or ended before the gates."""

import json

import pytest
import typer

from scripts import sequential_requests
from scripts.sequential_requests import COLUMNS, carry_out, row, set_value

SCORES = {"seen": 0.25, "unseen": None, "by_name": 1.0}
OUTCOME = {
    "scores": {"requests": {name: {"after": SCORES} for name in ("round-1", "round-2")}},
    "gates": [
        gate | {"limit": 0.9}
        for gate in (
            {"name": "forget", "about": "round-2", "value": 0.95, "holds": "at most", "passed": False},
            {"name": "retain", "about": None, "value": 0.95, "holds": "at least", "passed": True},
            {"name": "utility", "about": None, "value": None, "holds": "at least", "passed": False},
        )
    ],
}


def test_a_row_names_the_gates_that_failed_and_the_scores_of_earlier_people():
    cells = dict(zip(COLUMNS, row("round-2", ["a", "b"], OUTCOME, None, valid=True), strict=True))
    assert cells["request"] == "round-2 (2 people)"
    assert cells["forget, these: seen / unseen"] == "0.25 / –"
    assert cells["forget, earlier: mean / worst"] == "0.25 / 0.25"
    assert (cells["retain, share"], cells["utility, share"]) == ("0.95", "–")
    assert cells["gates"].startswith("failed: forget") and "0.9" in cells["gates"]
    assert (cells["in production"], cells["chain"]) == ("no", "valid")


def test_a_value_is_set_by_its_key():
    params = {"unlearn": {"methods": {"npo": {}}}, "seed": 0}
    set_value(params, "unlearn.methods.npo.epochs=7")
    assert params == {"unlearn": {"methods": {"npo": {"epochs": 7}}}, "seed": 0}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone in which each run of a request writes the next of `outcomes` as its state; the commands run."""
    outcomes, commands = [], []
    state = tmp_path / "data/requests/state/round-2.json"
    state.parent.mkdir(parents=True)
    (tmp_path / ".requests" / "r").mkdir(parents=True)
    (tmp_path / ".requests" / "r" / "gates.json").write_text(json.dumps(OUTCOME))

    def run(folder, *command, expected=None):
        commands.append(command[1])
        if command[1] == "run" and outcomes:
            state.write_text(json.dumps(outcomes.pop(0)))
        return 0

    monkeypatch.setattr(sequential_requests, "run", run)
    return tmp_path, state, outcomes, commands


def test_a_killed_round_is_run_again_and_a_finished_one_is_not(clone):
    folder, state, outcomes, commands = clone
    state.write_text('{"status": "pending"}')
    outcomes.append({"status": "needs-attention", "certificate": None, "run": "r", "version": None})
    cells = carry_out(folder, "round-2", ["a"])
    assert commands == ["add", "run", "verify"] and cells[COLUMNS.index("in production")] == "no"
    (folder / "data/requests/round-2.yaml").touch()
    assert carry_out(folder, "round-2", ["a"]) == cells and commands[3:] == ["verify"]


def test_a_round_that_ends_before_the_gates_says_why(clone):
    folder, _, outcomes, _ = clone
    with pytest.raises(typer.BadParameter) as error:
        carry_out(folder, "round-2", ["a"])
    assert "round-2" in str(error.value)
    unknown = {"status": "needs-attention", "certificate": None, "run": "", "reasons": ["not known"]}
    outcomes.append(unknown)
    with pytest.raises(typer.BadParameter) as error:
        carry_out(folder, "round-2", ["a"])
    assert "not known" in str(error.value)
