"""The page of a study and its Markdown: conclusions, verdicts, gaps, nothing from outside."""

from __future__ import annotations

import json
import re

import pytest

from efface.evaluation.intervals import Fold
from efface.evaluation.studies import COSTS, CURVES, EXACT_SCORE, Outcome, Setting, compare_outcomes
from efface.report.study_page import (
    GAPS,
    StudyPage,
    control_rows,
    mean_tables,
    pair_rows,
    plain_study,
    render_study,
    setting_rows,
    study_conclusions,
    study_summary,
)

METHODS = ("npo", "mmunlearner", "random_mask")
FOLDS = [Fold(seed, fold) for seed in (0, 1, 2) for fold in (0, 1)]
CURVE = [{"forget_known": 1.0, "retain_known": 1.0}, {"forget_known": 0.2, "retain_known": 0.9}]


def compared(levels=(40.0, 80.0, 80.5), floor=0.97, lost=None, curves=True):
    outcomes = []
    for at in FOLDS:
        for index, (method, level) in enumerate(zip(METHODS, levels, strict=True)):
            luck = ((at.seed * 7 + at.fold * 3 + index * 5) % 11) / 5
            numbers = {
                "score": level + luck,
                EXACT_SCORE: level + luck,
                "forget, picture": 0.25,
                COSTS[1]: 812.4,
            }
            numbers |= {"relearn, gap": 0.5, "density": 0.4} if method == "mmunlearner" else {}
            numbers |= {name: function(CURVE) for name, function in CURVES.items()} if curves else {}
            if (method, at) != lost:
                outcomes.append(Outcome(at, False, None, method, numbers))
        if at.fold == 0:
            outcomes.append(Outcome(at, False, None, "retrained", {"score": 0.0, "forget": floor}))
    fronts = {method: dict.fromkeys(FOLDS, CURVE) for method in METHODS} if curves else {}
    return compare_outcomes(
        [*outcomes, *(Outcome(Fold(9, 0), True, i, "npo", {"score": 30.0 + i}) for i in range(3))],
        goal="visual",
        methods=METHODS,
        folds=FOLDS,
        controls={"mmunlearner": "random_mask"},
        fronts=fronts,
    )


@pytest.fixture(scope="module")
def page():
    words = {"npo": ["beta 0.1", "beta 0.4", "beta 1.0"]}
    return StudyPage(compared(), words, {"seed 2, <b>": "disk full"}, {"command": "python -m flows.study"})


def test_three_sentences_say_what_is_settled_and_what_could_not_be_seen(page):
    scale, claim, unseen = study_conclusions(page.comparison)
    assert "3 methods" in scale and "6 folds on 3 seeds" in scale and "0.97" in scale
    assert "mmunlearner before npo, random_mask before npo" in claim
    assert "mmunlearner is not settled against its control random_mask" in claim
    pair = next(p for p in page.comparison.pairs if (p.number, p.first) == ("score", "mmunlearner"))
    assert f"{pair.detectable:.1f}" in unseen and "1 of 3 pairs" in unseen


def test_a_floor_that_does_not_hold_and_pairs_that_lack_folds_are_said_first():
    comparison = compared(floor=0.7, lost=("npo", Fold(1, 1)))
    scale, claim, _ = study_conclusions(comparison)
    assert "0.70" in scale and "is wrong" in scale
    assert "no order" in claim and "2 of 3 pairs lack folds" in claim
    words = [row[4] for row in pair_rows(comparison)["score"]]
    assert words == ["gap: 5 of 6 folds", "gap: 5 of 6 folds", "not settled"]


def test_controls_have_their_verdicts_and_every_not_settled_what_could_be_seen(page):
    rows = {row[0]: row[1:] for row in control_rows(page.comparison)}
    difference, interval, _p, verdict, detectable = rows["mmunlearner against random_mask, score"]
    assert verdict == "not settled" and float(detectable) > 0
    assert float(interval.split(" to ")[0]) < float(difference) < float(interval.split(" to ")[1])
    better = control_rows(compared(levels=(40, 90, 60)))[0]
    assert better[4:] == ["beats", ""]
    assert control_rows(compared(levels=(40, 60, 90)))[0][4] == "does not beat"


def test_tables_hold_what_is_known_and_only_that(page):
    tables = mean_tables(page.comparison)
    assert [len(rows) for _, rows in tables.values()] == [4, 3, 3, 1, 1, 3]
    columns, rows = tables[GAPS]
    assert columns == ["relearn, gap", "folds"] and rows == [
        ("mmunlearner", [("0.50", "0.50 to 0.50"), ("6", "")])
    ]
    assert "forget-retain curve" not in mean_tables(compared(curves=False))


def test_intervals_and_differences_end_where_the_number_does():
    two = [Fold(0, 0), Fold(1, 0)]
    outcomes = [
        Outcome(at, False, None, method, {"score": score, EXACT_SCORE: score, "forget, picture": score / 100})
        for method, scores in {"npo": (60.0, 95.0), "mmunlearner": (40.0, 96.0)}.items()
        for at, score in zip(two, scores, strict=True)
    ]
    wide = compare_outcomes(
        outcomes, goal="visual", methods=["npo", "mmunlearner"], folds=two, controls={}, fronts={}
    )
    tables = mean_tables(wide)
    assert tables["score, goal visual"][1][0] == (
        "npo",
        [("77.5", "0.0 to 100.0"), ("77.5", "0.0 to 100.0"), ("2", "")],
    )
    assert tables["exact match"][1][0][1][0] == ("0.77", "0.00 to 1.00")
    [row] = [row for row in pair_rows(wide)["score"] if row[0] == "npo – mmunlearner"]
    assert row[-1] == "none" and row[2].startswith("-")


def test_the_setting_is_named_with_how_many_were_tried(page):
    assert setting_rows(page) == [("npo", "beta 1.0, best of 3 with a score of 32.0 on the tuning folds")]
    refused = {"npo": Setting(0, {}, "npo: first of 3 settings; vanilla")}
    unchosen = StudyPage(compared(), page.settings, {}, {})
    unchosen = StudyPage(
        unchosen.comparison.__class__(**(vars(unchosen.comparison) | {"settings": refused})),
        page.settings,
        {},
        {},
    )
    assert setting_rows(unchosen)[0][1].startswith("beta 0.1, not chosen")


def test_the_summary_holds_every_table_and_every_reason(page):
    text = study_summary(page)
    assert all(sentence in text for sentence in study_conclusions(page.comparison))
    assert "| npo – mmunlearner |" in text and "seed 2, <b>: disk full" in text and "812" in text


def test_the_page_stands_alone_and_escapes(page):
    html = render_study(page)
    assert "seed 2, &lt;b&gt;" in html and "<script" not in html and html.count("<details>") == len(CURVES)
    assert not re.search(r"(src|href)=\"https?:", html)
    assert "Retention at equal forgetting" in html and "npo keeps 0.00 at 0.10, 0.90 at 0.25" in html


def test_the_numbers_are_plain_values(page):
    plain = json.loads(json.dumps(plain_study(page.comparison)))
    assert plain["pairs"][0]["difference"]["clusters"] == 3 and plain["floors"] == [
        [s, 0, 0.97] for s in (0, 1, 2)
    ]
    assert plain["settings"]["npo"]["index"] == 2
    assert set(plain["lines"]["npo"]["numbers"]["score"]) == {
        "mean",
        "error",
        "folds",
        "clusters",
        "interval",
    }
