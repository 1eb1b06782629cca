"""Variances behind the planning of a study, and the table that a finished study gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from efface.evaluation.intervals import Fold, detectable_difference
from scripts.power import main, variances


def drawn(between, within, seeds=400, folds=5):
    rng = np.random.default_rng(0)
    shared = rng.normal(0, between, seeds)
    noise = rng.normal(0, within, (seeds, folds))
    return {Fold(s, f): float(shared[s] + noise[s, f]) for s in range(seeds) for f in range(folds)}


def test_variances_between_seeds_and_between_folds_are_told_apart():
    assert variances(drawn(3.0, 2.0)) == pytest.approx((9, 4), rel=0.15)
    between, within = variances(drawn(0.0, 2.0))
    assert between < 0.2 and within == pytest.approx(4, rel=0.1)
    with pytest.raises(ValueError) as error:
        variances({Fold(0, 0): 1.0, Fold(0, 1): 2.0})
    assert "1 seeds" in str(error.value)


def test_a_study_says_what_it_would_have_seen(tmp_path, capsys):
    values = drawn(0.0, 6.0, seeds=3, folds=8)
    outcomes = [
        {"fold": list(fold), "tuning": False, "model": model, "numbers": {"score": score, "forget": 0.5}}
        for fold, value in values.items()
        for model, score in (("npo", 50 + value), ("manu", 50.0), ("base", 0.0))
    ]
    (tmp_path / "results.json").write_text(json.dumps({"outcomes": outcomes}))
    main(tmp_path / "results.json")
    between, within = variances(values)
    expected = detectable_difference((between / 3 + within / 24) ** 0.5, 2)
    assert f"| score | 3 x 8 | {expected:.1f} | {expected:.1f} |" in capsys.readouterr().out
