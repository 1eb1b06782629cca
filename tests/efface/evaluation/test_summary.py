"""Whole-model numbers: privacy against retrained, forget quality, modality gap; a missing one is not 0."""

from __future__ import annotations

import pandas as pd
import pytest

from efface.errors import ArtifactError
from efface.evaluation.summary import (
    forget_quality_of,
    membership,
    modality_gap,
    privacy_of,
    rate,
    relative_distance_of,
)


def table(*, forget_nll=0.5, holdout_nll=2.0, **changes):
    rows = []
    for name, nll in (("forget", forget_nll), ("holdout", holdout_nll)):
        for i in range(6):
            for modality in ("multimodal", "text"):
                rows.append(
                    {
                        "sample_id": f"{name}{i}{modality}",
                        "entity_id": f"{name}/{i}",
                        "pair_id": f"{name}{i}",
                        "set": name,
                        "part": "test",
                        "modality": modality,
                        "task": "cloze",
                        "question": "?",
                        "gold": "a pony",
                        "generation": "a pony" if modality == "text" or i < 2 else "I don't know",
                        "nll_gold": nll + 0.01 * i,
                        "n_tokens": 3,
                        "nll_paraphrase": nll + 0.1 * i,
                        "nll_wrong": [3.0, 4.0],
                        "token_logprobs": [-nll - 0.01 * i] * 3,
                        "token_zscores": [-nll] * 3,
                    }
                    | changes
                )
    return pd.DataFrame(rows)


def test_members_stand_out_by_every_signal_and_are_compared_with_retrained():
    results = membership(table())
    assert {name: (result.auc, result.tpr) for name, result in results.items()} == dict.fromkeys(
        ("mia_zlib", "mia_loss", "mia_min_k", "mia_min_k_pp"), (1.0, 1.0)
    )
    compared = privacy_of(table(), table(forget_nll=2.0))["mia_loss"]
    assert (compared.retrained.auc, compared.gap, compared.leak) == (0.5, 0.5, pytest.approx(-1))
    hidden = privacy_of(table(forget_nll=9.0), table(forget_nll=2.0))["mia_loss"]
    assert (hidden.gap, hidden.leak) == (0.5, pytest.approx(1))  # too unlikely betrays them as well
    assert privacy_of(table(), table())["mia_loss"].leak is None  # not defined against an AUC of 1


def test_the_interval_of_an_auc_is_over_people():
    """Two rows a person make the interval no narrower than one."""
    nll = [0.1, 0.5, 0.9, 1.4, 0.3, 0.8]
    rows = table()
    rows["nll_gold"] = [
        nll[int(person.split("/")[1])] + (0.4 if person.startswith("holdout") else 0.0)
        for person in rows["entity_id"]
    ]
    once = membership(rows, attacks=["mia_loss"])["mia_loss"]
    twice = pd.concat([rows, rows.assign(sample_id=rows["sample_id"] + "again")])
    assert membership(twice, attacks=["mia_loss"])["mia_loss"].interval == pytest.approx(once.interval)
    assert 0 <= once.interval[0] < once.auc < once.interval[1] <= 1
    few = rows[~((rows["set"] == "forget") & (rows["entity_id"] != "forget/0"))]
    assert membership(few, attacks=["mia_loss"])["mia_loss"].interval is None  # one person to forget


def test_the_relative_distance_is_of_questions_by_picture():
    vanilla, retrained, model = table(forget_nll=0.1), table(forget_nll=3.0), table(forget_nll=2.5)
    result = relative_distance_of(model, vanilla, retrained)
    # Every log-probability is 2.4 from vanilla's and 0.5 from retrained's.
    assert (result.difference, result.people) == (pytest.approx(1.9), 6)
    assert relative_distance_of(*(t[t["modality"] == "text"] for t in (model, vanilla, retrained))) is None


def test_what_is_lacking_is_not_available_rather_than_zero():
    rows = table()
    assert membership(rows[rows["set"] == "forget"]) == {}
    assert set(membership(rows.drop(columns=["token_logprobs", "token_zscores"]))) == {"mia_loss", "mia_zlib"}
    assert forget_quality_of(table(nll_wrong=None), table()) is None
    assert forget_quality_of(table(), table(nll_paraphrase=None)) is None
    assert modality_gap(rows[rows["modality"] == "text"]) is None
    assert rate(rows, "rouge_l", sets=("forget",)) is None


def test_forget_quality_compares_the_same_rows():
    same = forget_quality_of(table().sample(frac=1, random_state=0), table())
    assert same.p_value == pytest.approx(1) and same.n == 6
    assert forget_quality_of(table(forget_nll=9.0), table()).p_value < 0.01
    with pytest.raises(ArtifactError) as error:
        forget_quality_of(table().iloc[1:], table())
    assert "the model: 1 missing" in str(error.value)


def test_modality_gap_golden():
    # Two of six facts by picture, all six by name.
    assert modality_gap(table()) == pytest.approx(2 / 3)
    assert rate(table(), "refusal_rate", sets=("forget",)) == pytest.approx(1 / 3)
