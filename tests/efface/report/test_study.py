"""The page of a study and its Markdown: all tables, the reasons for what is missing, nothing from outside."""

from __future__ import annotations

import re

import pytest

from efface.evaluation.studies import COSTS, Line, Mean
from efface.report.study import GAPS, StudyPage, render_study, study_summary, tables


def line(model, score=None, gaps=(), refused=None):
    numbers = {"forget, picture": Mean(0.25, (0.1, 0.4), (0.2, 0.3)), COSTS[1]: Mean(812.4, None, (812.4,))}
    numbers |= {} if score is None else {"score": Mean(score, None, (score,))}
    means = {attack: Mean(value, None, (value,)) for attack, value in gaps}
    return Line(0.1, model, f"{model}, epochs 2", 3, (0, 1), numbers, refused, means)


@pytest.fixture
def page():
    lines = [
        line("npo", 81.25, gaps=[("no attack", 0.2), ("relearn", 0.5)]),
        line("manu", refused="never learnt"),
    ]
    return StudyPage(lines, "visual", {"seed 2, <b>": "disk full"}, {"command": "python -m flows.study"})


def test_attacks_have_a_table_only_where_a_model_was_attacked(page):
    assert tables(page)[GAPS] == ["no attack", "relearn"]
    without = StudyPage([line("npo")], "visual", {}, {})
    assert GAPS not in tables(without)


def test_the_summary_holds_every_number_with_its_interval_and_every_reason(page):
    text = study_summary(page)
    npo = [row for row in text.splitlines() if row.startswith("| npo")]
    assert len(npo) == len(tables(page))
    assert "0.25 (0.10 to 0.40)" in npo[0] and "81.2" in npo[1] and "812" in npo[2] and "0.50" in npo[3]
    assert "never learnt" in text and "seed 2, <b>: disk full" in text


def test_the_page_stands_alone_and_escapes(page):
    html = render_study(page)
    assert "best of 3" in html and GAPS.capitalize() in html
    assert "seed 2, &lt;b&gt;" in html and "<script" not in html
    assert not re.search(r"(src|href)=\"https?:", html)
    assert "<td>0.25<small>0.10 to 0.40</small></td>" in html
