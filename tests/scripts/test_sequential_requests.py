"""The table of requests one after the other: what a row says of a round that failed."""

from scripts.sequential_requests import COLUMNS, row, set_value

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
