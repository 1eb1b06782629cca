"""Comparison over folds: pairs, controls, settings, and what is marked or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efface.errors import ArtifactError, EvaluationError
from efface.evaluation.goals import unlearning_score
from efface.evaluation.intervals import Fold, holm
from efface.evaluation.studies import (
    CURVES,
    EXACT_SCORE,
    PAIRED,
    WITHSTOOD,
    WORST,
    Outcome,
    StudyCell,
    cell_outcomes,
    choose_settings,
    compare_outcomes,
    compare_study,
)
from tests.efface.evaluation.test_goals import BASE, TOP, VANILLA, table

METHODS = ("npo", "mmunlearner", "random_mask")
CONTROLS = {"mmunlearner": "random_mask"}
FOLDS = [Fold(seed, fold) for seed in (0, 1, 2) for fold in (0, 1)]


def on_fold(rows, fold):
    """The table with forget people of this fold's own."""
    forget = rows["set"].isin(["forget", "unseen"])
    people = rows["entity_id"].where(~forget, f"{fold}/" + rows["entity_id"])
    return rows.assign(entity_id=people)


def left(share, seed=0):
    """A method that leaves this share of knowledge about the people to forget, by picture."""
    named = {"forget": TOP, "unseen": TOP}
    return table(VANILLA | {"forget": share, "unseen": share}, text=named, noise=0.02, seed=seed)


def cell(seed, fold, scores, *, setting=None, tuning=False):
    references = {"base": table(BASE), "vanilla": table(VANILLA)}
    tables = {name: on_fold(rows, fold) for name, rows in (references | scores).items()}
    return StudyCell(seed, fold, tuning, setting, tables)


def outcomes(levels=(40.0, 80.0, 60.0), exact=None, noise=3.0):
    """Scores of the methods around these levels on every fold, and of a retrained model on one per seed."""
    rng, result = np.random.default_rng(0), []
    for at in FOLDS:
        for method, level, exactly in zip(METHODS, levels, exact or levels, strict=True):
            luck = rng.normal(0, noise)
            numbers = {
                "score": level + luck,
                EXACT_SCORE: exactly + luck,
                "forget": level / 100,
                "retain": 0.9,
            }
            result.append(Outcome(at, False, None, method, numbers))
        if at.fold == 0:
            result.append(Outcome(at, False, None, "retrained", {"score": 0.0, "forget": 0.97, "text": 0.9}))
    return result


def compared(of_models, **options):
    plan = {"goal": "visual", "methods": METHODS, "folds": FOLDS, "controls": CONTROLS, "fronts": {}}
    return compare_outcomes(of_models, **(plan | options))


def verdicts(comparison, number="score"):
    return {(p.first, p.second): p.verdict for p in comparison.pairs if p.number == number}


@pytest.fixture(scope="module")
def cells():
    """One seed and two folds; npo leaves half, retrained is on one fold."""
    return [
        cell(0, 0, {"npo": left(0.5), "mmunlearner": left(0.1), "retrained": left(0.04)}),
        cell(0, 1, {"npo": left(0.4, seed=1), "mmunlearner": left(0.15, seed=1)}),
    ]


def test_an_outcome_holds_both_scores_with_the_floor_from_base(cells):
    (one,) = [o for o in cell_outcomes(cells[:1], goal="visual") if o.model == "npo"]
    scores = cells[0].scores
    for measure, name in (("knowledge", "score"), ("exact_match", EXACT_SCORE)):
        expected = unlearning_score(
            scores["npo"],
            base=scores["base"],
            vanilla=scores["vanilla"],
            retrained=None,
            goal="visual",
            measure=measure,
        )
        assert one.numbers[name] == expected.value
    assert one.refused is None and one.numbers["forget, picture"] == pytest.approx(0.5, abs=0.02)
    halves = [
        replace(cells[0], scores={k: v for k, v in cells[0].scores.items() if (k == "npo") is npo})
        for npo in (True, False)
    ]
    assert one in cell_outcomes(halves, goal="visual")  # the reference models may be in another cell


def test_pairs_with_a_control_are_adjusted_apart_and_ordered_where_clear_of_zero():
    comparison = compared(outcomes())
    assert verdicts(comparison) == {
        ("npo", "mmunlearner"): "second",
        ("npo", "random_mask"): "second",
        ("mmunlearner", "random_mask"): "first",
    }
    pairs = [p for p in comparison.pairs if p.number == "score"]
    raw = [p.difference.p_value() for p in pairs]
    assert [p.p_value for p in pairs] == pytest.approx([*holm(raw[:2]), raw[2]]) and raw[0] < holm(raw[:2])[0]
    assert all(p.folds == 6 and p.difference.clusters == 3 and p.detectable > 0 for p in pairs)
    (control,) = [p for p in comparison.of_control("mmunlearner") if p.number == "score"]
    assert (control.first, control.verdict) == ("mmunlearner", "first")
    turned = control.seen_from("random_mask")
    assert (turned.verdict, turned.difference.mean) == ("second", -control.difference.mean)


def test_equal_methods_are_not_settled_and_the_detectable_difference_is_of_the_adjusted_level():
    comparison = compared(outcomes(levels=(60.0, 60.0, 60.0)))
    assert set(verdicts(comparison).values()) == {"not settled"}
    pair = comparison.pairs[0]
    assert pair.detectable == pytest.approx(pair.difference.detectable(1 - 0.05 / 2))
    assert comparison.pairs[2].detectable == pytest.approx(comparison.pairs[2].difference.detectable(0.95))


def test_an_order_that_exact_match_contradicts_is_not_claimed():
    comparison = compared(outcomes(exact=(40.0, 50.0, 60.0)))
    assert list(verdicts(comparison).values()) == ["second", "second", "measures disagree"]


def test_a_study_stopped_in_the_middle_orders_nothing_that_lacks_a_fold():
    lost = [o for o in outcomes() if (o.model, o.fold) != ("npo", Fold(1, 1))]
    comparison = compared(lost)
    assert list(verdicts(comparison).values()) == ["gap", "gap", "first"]
    assert [p.folds for p in comparison.pairs if p.number == "score"] == [5, 5, 6]
    assert [gap for gap in comparison.gaps if gap.startswith("npo: ") and "seed 1, fold 1" in gap]
    p_value, whole = (compared(o).of_control("mmunlearner")[0].p_value for o in (lost, outcomes()))
    assert p_value >= whole  # a gap stays in the family
    without = compared([o for o in outcomes() if o.model != "random_mask"])
    assert {p.verdict for p in without.of_control("mmunlearner")} == {"gap"}
    assert [line.model for line in without.lines][-1] == "random_mask"


def test_a_fold_without_base_has_no_score_but_its_exact_match(cells):
    scores = {k: v for k, v in cells[0].scores.items() if k != "base"}
    (npo,) = [o for o in cell_outcomes([replace(cells[0], scores=scores)], goal="visual") if o.model == "npo"]
    assert "score" not in npo.numbers and "forget, picture" in npo.numbers and "base" in npo.refused


def test_retrained_checks_the_floor_once_per_seed(cells):
    comparison = compared(outcomes())
    assert comparison.floors == {Fold(0, 0): 0.97, Fold(1, 0): 0.97, Fold(2, 0): 0.97}
    assert comparison.gaps == []
    assert compared(outcomes(), goal="full").floors[Fold(0, 0)] == 0.9
    lost = [o for o in outcomes() if (o.model, o.fold) != ("retrained", Fold(0, 0))]
    assert any("seed 0" in gap for gap in compared(lost).gaps)
    measured = compare_study(
        cells, goal="visual", methods=["npo", "mmunlearner"], folds=[Fold(0, 0), Fold(0, 1)], controls={}
    )
    assert measured.floors[Fold(0, 0)] == pytest.approx(1 - 0.02 / 0.88, abs=0.02)
    assert [p.verdict for p in measured.pairs if p.number == "retain"] == ["not settled"]


def test_curves_and_attacks_are_compared_where_every_fold_has_them(cells):
    start = {"forget_known": 1.0, "retain_known": 1.0}
    curves = {
        "mmunlearner": [start, {"forget_known": 0.1, "retain_known": 0.95}],
        "npo": [start, {"forget_known": 0.1, "retain_known": 0.5}],
    }
    plan = {"goal": "visual", "methods": METHODS, "folds": [Fold(0, 0), Fold(0, 1)], "controls": {}}
    gaps = {"mmunlearner": {WORST: -0.25}, "npo": {WORST: 0.75}}
    comparison = compare_study([replace(c, curves=curves, gaps=gaps) for c in cells], **plan)
    assert {p.number for p in comparison.pairs} == set(PAIRED)
    pairs = {p.number: p for p in comparison.pairs if (p.first, p.second) == ("npo", "mmunlearner")}
    assert [pairs[name].difference.mean for name in CURVES] == pytest.approx([-0.9 * 0.45, -0.45, -0.9])
    assert pairs[WITHSTOOD].difference.mean == pytest.approx(-0.75)
    assert {p.verdict for p in comparison.pairs if "random_mask" in (p.first, p.second)} == {"gap"}
    assert {method: len(of_fold) for method, of_fold in comparison.fronts.items()} == {
        "npo": 2,
        "mmunlearner": 2,
    }


def test_settings_are_chosen_on_tuning_seeds_of_their_own(cells):
    tuning = [
        cell(9, fold, {"npo": left(level)}, setting=setting, tuning=True)
        for fold in (0, 1)
        for setting, level in enumerate((0.5, 0.2, 0.8))
    ]
    chosen = choose_settings([*tuning, *cells], goal="visual")
    assert list(chosen) == ["npo"] and chosen["npo"].index == 1
    assert list(chosen["npo"].scores) == [0, 1, 2]
    assert choose_settings(tuning[:4], goal="visual")["npo"].index == 0  # what lacks a fold cannot win
    plan = {"goal": "visual", "methods": ["npo"], "folds": [Fold(0, 0), Fold(0, 1)], "controls": {}}
    comparison = compare_study([*tuning, *cells], **plan)
    assert comparison.settings == chosen
    assert next(line for line in comparison.lines if line.model == "npo").folds == 2
    with pytest.raises(EvaluationError) as error:
        cell_outcomes([replace(tuning[0], seed=0), *cells], goal="visual")
    assert "[0]" in str(error.value)
    unlearnt = [replace(c, scores=c.scores | {"vanilla": c.scores["base"]}) for c in tuning[:3]]
    nothing = choose_settings(unlearnt, goal="visual")["npo"]
    assert (nothing.index, nothing.scores) == (0, {}) and "3 settings" in nothing.refused


def test_tables_of_other_folds_people_or_studies_are_refused(cells):
    swapped = replace(cells[0], scores=cells[0].scores | {"npo": cells[1].scores["npo"]})
    with pytest.raises(ArtifactError) as error:
        cell_outcomes([swapped], goal="visual")
    assert "npo" in str(error.value)
    with pytest.raises(EvaluationError) as error:
        cell_outcomes([cells[0], replace(cells[0], fold=1)], goal="visual")
    assert "seed 0, fold 0" in str(error.value) and "seed 0, fold 1" in str(error.value)
    with pytest.raises(EvaluationError) as error:
        cell_outcomes([cells[0], cells[0]], goal="visual")
    assert "npo" in str(error.value) and "seed 0, fold 0" in str(error.value)
    with pytest.raises(EvaluationError) as error:
        compared(outcomes(), folds=FOLDS[:-1])
    assert "seed 2, fold 1" in str(error.value)
    with pytest.raises(EvaluationError) as error:
        compared(outcomes(), controls={"manu": "random_pruning"})
    assert "manu, random_pruning" in str(error.value)
    with pytest.raises(EvaluationError) as error:
        compared([replace(o, tuning=True, setting=0) for o in outcomes()])
    assert "reported cell" in str(error.value)


def test_the_order_of_cells_changes_nothing():
    one, other = compared(outcomes()), compared(list(reversed(outcomes())))
    assert one.pairs == other.pairs
    assert [line.model for line in one.lines] == [line.model for line in other.lines]
