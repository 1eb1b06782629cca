"""Whole-model numbers: privacy against retrained, forget quality, modality gap; what is lacking is not 0."""

from __future__ import annotations

import pandas as pd
import pytest

from efface.errors import ArtifactError
from efface.evaluation.summary import forget_quality_of, membership, modality_gap, privacy_of, rate


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


def test_members_stand_out_by_every_signal_and_retrained_is_the_yardstick():
    assert membership(table()) == dict.fromkeys(("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_pp"), 1.0)
    found = privacy_of(table(), table(forget_nll=2.0))
    assert found["mia_loss"].retrained == 0.5 and found["mia_loss"].gap == 0.5
    assert found["mia_loss"].leak == pytest.approx(-1)
    hidden = privacy_of(table(forget_nll=9.0), table(forget_nll=2.0))["mia_loss"]
    assert (hidden.gap, hidden.leak) == (0.5, pytest.approx(1))  # too unlikely betrays them as well
    assert privacy_of(table(), table())["mia_loss"].leak is None  # not defined against an AUC of 1


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
    with pytest.raises(ArtifactError, match="different samples"):
        forget_quality_of(table().iloc[1:], table())


def test_modality_gap_golden():
    # Two of six facts by picture, all six by name.
    found = modality_gap(table())
    assert (found.gap, found.both_right, found.both_wrong, found.n) == pytest.approx((2 / 3, 1 / 3, 0, 6))
    assert rate(table(), "refusal_rate", sets=("forget",)) == pytest.approx(1 / 3)
