"""The table of rounds: what it says of a round that failed, and that the page around it stays."""

import pytest
import typer

from scripts.requests import BEGIN, COLUMNS, END, line, parameters, write

FORGOT = {"seen": 0.25, "unseen": None, "by_name": 1.0}
FOUND = {
    "scores": {"requests": {name: {"after": FORGOT} for name in ("round-1", "round-2")}},
    "gates": [
        gate | {"limit": 0.9}
        for gate in (
            {"name": "forget", "about": "round-2", "value": 0.95, "holds": "at most", "passed": False},
            {"name": "retain", "about": None, "value": 0.95, "holds": "at least", "passed": True},
            {"name": "utility", "about": None, "value": None, "holds": "at least", "passed": False},
        )
    ],
}


def test_a_line_names_the_gates_that_failed_and_what_earlier_people_are_answered():
    cells = dict(zip(COLUMNS, line("round-2", ["a", "b"], FOUND, None, True), strict=True))
    assert cells["asked"] == "round-2 (2 people)"
    assert cells["forget, these: seen / unseen"] == "0.25 / –"
    assert cells["forget, earlier: mean / worst"] == "0.25 / 0.25"
    assert (cells["retain, share"], cells["utility, share"]) == ("0.95", "–")
    assert cells["gates"].startswith("failed: forget of round-2 0.950, expected at most 0.9; utility ")
    assert (cells["in production"], cells["chain"]) == ("no", "valid")


def test_the_table_is_replaced_and_the_page_around_it_stays(tmp_path):
    page = tmp_path / "page.md"
    begin, end = BEGIN.format(" with a=1"), END.format(" with a=1")
    page.write_text(f"before\n{begin}old\n{end}after\n")
    for _ in range(2):
        write(page, " with a=1", [["x"] * len(COLUMNS)], "about")
        text = page.read_text()
        assert text.startswith(f"before\n{begin}about\n\n| asked |") and text.endswith(f"| x |\n{end}after\n")
        assert "old" not in text and text.count("about") == 1
    with pytest.raises(typer.BadParameter, match="between which the table goes"):
        write(page, "", [], "about")


def test_other_settings_go_into_the_parameters():
    values = parameters(["unlearn.methods.npo.epochs=7"])
    assert values["unlearn"]["methods"]["npo"]["epochs"] == 7 and values["requests"]["auto_promote"] is True
