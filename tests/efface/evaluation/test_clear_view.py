"""CLEAR's numbers: the golden vectors, the two departures of the released code, and what is left out."""

import math

import pandas as pd
import pytest

from efface.evaluation.benchmarks import view_of
from efface.evaluation.benchmarks.clear import forget_quality, truth_ratios, view

PARAPHRASE, WRONG, GOLD = [1.0, 2.0, 0.5], [[2.0, 3.0], [1.0, 2.0], [1.5, 0.5]], [0.8, 1.5, 0.4]
SAID = ["Ada Verity", "A", "Lou Moreau"]


def rows(set_name, task, *, gold=GOLD, paraphrase=PARAPHRASE, wrong=WRONG, **changes):
    options = ["Ada Verity", "Lou Moreau"] if task == "choice" else None
    return [
        {
            "set": set_name, "part": "test", "task": task, "sample_id": f"{set_name}-{task}-{i}",
            "modality": "multimodal", "gold": "Ada Verity", "generation": SAID[i],
            "nll_gold": gold[i], "nll_paraphrase": paraphrase[i], "nll_wrong": wrong[i], "options": options,
            "correct": i < 2 if options else None,
        } | changes
        for i in range(3)
    ]  # fmt: skip


def everything(**changes):
    readings = []
    for set_name, task in (
        ("real", "name"), ("real", "choice"), ("utility", "qa"), ("utility", "choice"),
        ("retain", "caption"), ("retain", "name"), ("retain", "choice"),
        ("forget", "caption"), ("forget", "name"), ("forget", "choice"),
    ):  # fmt: skip
        readings += rows(set_name, task, **changes)
    for set_name in ("forget", "retain"):
        text = {"nll_paraphrase": None, "nll_wrong": None, "modality": "text"}
        readings += rows(set_name, "generation", **text)
    return pd.DataFrame(readings)


def test_golden_truth_ratios():
    table = rows("forget", "caption")
    assert truth_ratios(table) == pytest.approx([4.4817, 0.6065, 1.6487], abs=5e-5)


@pytest.mark.parametrize(
    ("compat", "forget", "elsewhere"), [(False, 0.478730, 0.390113), (True, 0.513784, 0.391727)]
)
def test_golden_scores_of_truth_ratios(compat, forget, elsewhere):
    tasks = view(everything(), official_compat=compat)["tasks"]
    assert tasks["forget"]["truth_ratio"]["value"] == pytest.approx(forget, abs=5e-7)
    for task in ("retain", "retain_face_recognition", "real_faces", "real_world"):
        assert tasks[task]["truth_ratio"]["value"] == pytest.approx(elsewhere, abs=5e-7)
    assert {cells["truth_ratio"]["n"] for cells in tasks.values()} == {3}


def test_golden_probabilities():
    tasks = view(everything())["tasks"]
    for task, cells in tasks.items():
        caption = task in ("forget", "retain")
        expected = 0.447593 if caption else 0.487433  # captions alone are not held against wrong answers
        assert cells["probability"]["value"] == pytest.approx(expected, abs=5e-7)


def test_metrics_are_harmonic_means():
    readings = view(everything())
    p, q = 0.447593, 0.487433
    expected = {
        "real_metric": [q, 0.390113] * 2,
        "retain_metric": [p, 0.390113, q, 0.390113],
        "forget_metric": [p, 0.478730, q, 0.478730],
    }
    for name, values in expected.items():
        mean = len(values) / sum(1 / value for value in values)
        assert readings["metrics"][name] == {"value": pytest.approx(mean, abs=2e-6), "n": 6}
    rouge = readings["tasks"]["retain"]["rouge_l_recall"]["value"]
    values = [rouge] * 4 + [p] + [q] * 3 + [0.390113] * 4
    utility = 12 / sum(1 / value for value in values)
    assert readings["metrics"]["model_utility"]["value"] == pytest.approx(utility, abs=2e-6)


def test_rouge_is_recall_of_the_gold():
    table = pd.DataFrame(rows("forget", "caption", generation="Ada Verity walks along a river"))
    assert view(table)["tasks"]["forget"]["rouge_l_recall"]["value"] == 1.0


def ratio_table(ratios):
    wrong = [[0.0]] * 3
    return pd.DataFrame(rows("forget", "caption", paraphrase=[-math.log(r) for r in ratios], wrong=wrong))


def test_golden_forget_quality():
    readings = forget_quality(ratio_table([1, 2, 3]), ratio_table([2, 2, 2]), official_compat=True)
    assert readings["js_quality"] == pytest.approx(0.849840, abs=5e-7)
    assert readings["ks_statistic"] == pytest.approx(1 / 3) and readings["ks_p"] == pytest.approx(1.0)
    assert readings["log10_ks_p"] == pytest.approx(0.0, abs=1e-9) and readings["n"] == 3


def test_forget_quality_pairs_rows_by_id_and_forgets_their_order():
    first, second = ratio_table([1, 2, 3]), ratio_table([3, 1, 5])
    for compat in (False, True):
        present = forget_quality(first, second, official_compat=compat)
        assert forget_quality(first.iloc[::-1], second, official_compat=compat) == present
        assert forget_quality(first, first, official_compat=compat)["js_quality"] == pytest.approx(1.0)


def test_forget_quality_needs_the_same_captions():
    with pytest.raises(ValueError) as error:
        forget_quality(ratio_table([1, 2, 3]), ratio_table([1, 2, 3]).iloc[:2])
    assert "3 and 2" in str(error.value)


def test_captions_without_paraphrase_count_where_none_is_needed():
    table = everything()
    bare = (table["sample_id"] == "forget-caption-0").to_numpy()
    table.loc[bare, "nll_paraphrase"] = None
    table["nll_wrong"] = [None if b else w for b, w in zip(bare, table["nll_wrong"], strict=True)]
    cells = view(table)["tasks"]["forget"]
    assert (cells["truth_ratio"]["n"], cells["probability"]["n"], cells["rouge_l_recall"]["n"]) == (2, 3, 3)


def test_mmunlearners_numbers():
    readings = view(everything())["mmunlearner"]
    assert set(readings["vqa"]) == {"forget", "retain", "real", "utility"}
    for cells in readings["vqa"].values():  # said: "Ada Verity", "A", "Lou Moreau"; gold: option A
        assert cells["accuracy_strict"] == {"value": pytest.approx(2 / 3), "n": 3}
        assert cells["accuracy_first_alphanumeric"] == {"value": pytest.approx(2 / 3), "n": 3}
        assert cells["accuracy_likelihood"] == {"value": pytest.approx(2 / 3), "n": 3}
        assert cells["states_an_option"]["value"] == 1.0
    assert set(readings["vgen"]) == set(readings["qa"]) == {"forget", "retain"}
    assert readings["qa"]["forget"]["rouge_l"] == {"value": pytest.approx(1 / 3), "n": 3}


def test_what_has_no_rows_is_left_out():
    readings = view(pd.DataFrame(rows("forget", "caption")))
    assert set(readings["tasks"]) == {"forget"} and readings["metrics"] == {}
    assert set(readings["mmunlearner"]) == {"vgen"}


def test_only_test_people_count_and_other_benchmarks_have_no_view():
    table = everything()
    table.loc[table["sample_id"].str.endswith("0"), "part"] = "validation"
    assert view_of(table, "clear")["tasks"]["forget"]["probability"]["n"] == 2
    assert view_of(table, "avatars") is None
