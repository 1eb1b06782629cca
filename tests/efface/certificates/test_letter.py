"""The letter says in one page what was done and what it does not mean."""

import pytest

from efface.certificates.letter import letter, letter_html, letter_text

CERTIFICATE = {
    "number": 4,
    "request": {"id": "A", "requester": "case <7>", "received": "2026-01-02", "subjects": ["ab"]},
    "models": {"registered_name": "efface-x", "after": {"version": 3}},
    "made": {"time": "2026-01-20T10:00:00Z"},
    "scores": {
        "requests": {
            "A": {"before": {"seen": 0.98, "unseen": 0.9}, "after": {"seen": 0.05, "unseen": None}},
        }
    },
    "evidence": {"A": {"goal": "visual"}},
}


def test_the_letter_has_the_numbers_and_fits_a_page():
    content = letter(CERTIFICATE, date="2026-02-01", deleted="2026-01-31", recipients=["Ours Ltd"])
    text = letter_text(content)
    assert "answered 98 of 100" in " ".join(text.split()) and "answers 5." in text
    assert "2026-01-31" in text and "Ours Ltd" in text and "types a name" in " ".join(text.split())
    assert len(text.splitlines()) <= 60 and max(map(len, text.splitlines())) <= 78
    page = letter_html(content)
    assert "case &lt;7&gt;" in page and "<script" not in page


@pytest.mark.parametrize(("goal", "words"), [("visual", True), ("full", False)])
def test_what_stays_known_by_name_is_said_where_it_stays(goal, words):
    certificate = CERTIFICATE | {"evidence": {"A": {"goal": goal}}}
    text = " ".join(letter_text(letter(certificate, date="d", deleted=None, recipients=[])).split())
    assert ("types a name" in text) is words and "We still have the pictures" in text
