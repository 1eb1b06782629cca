"""The score: its definition by hand, who cannot win it, when it is refused, intervals over people."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import ArtifactError, EvaluationError
from efface.evaluation.goals import GOALS, MEASURES, score_difference, unlearning_score

PEOPLE = {"forget": 4, "unseen": 4, "retain": 6, "real": 3, "utility": 20}
FLOOR, TOP = 0.02, 0.9
VANILLA = dict.fromkeys(PEOPLE, TOP)
BASE = dict.fromkeys(PEOPLE, FLOOR) | {"real": TOP, "utility": TOP}


def table(
    levels: dict[str, float],
    *,
    text: dict[str, float] | None = None,
    part: str = "test",
    noise: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Score table with this knowledge (and exact match) of each set; ``text`` replaces it by name."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, people in PEOPLE.items():
        for person in range(people):
            for modality in ("multimodal", "text"):
                level = (text or {}).get(name, levels[name]) if modality == "text" else levels[name]
                level = float(np.clip(level + noise * rng.uniform(-1, 1), 1e-6, 1))
                for question, task in enumerate(("cloze", "choice", "generation")):
                    rows.append(
                        {
                            "sample_id": f"{name}/{person}/{modality}/{question}",
                            "entity_id": f"{'forget' if name == 'unseen' else name}/{person}",
                            "set": name,
                            "part": part,
                            "modality": modality,
                            "task": task,
                            "question": "?",
                            "gold": "x",
                            "generation": "x",
                            # A sentence is likely whatever the model knows: its frame.
                            "token_logprobs": [math.log(0.8 if task == "generation" else level)] * 2 + [0.0],
                            "exact_match": None if task == "generation" else level,
                        }
                    )
    return pd.DataFrame(rows)


REFERENCES = {
    "base": table(BASE),
    "vanilla": table(VANILLA),
    "retrained": table(VANILLA | {"forget": 0.1, "unseen": 0.06}, text={"forget": 0.08, "unseen": 0.1}),
}


def score(model, goal="full", **options):
    return unlearning_score(model, **(REFERENCES | {"goal": goal} | options))


def parts(result):
    return result.forget, result.text, result.retain, result.utility


def test_every_part_by_hand_is_its_worst_set_and_modality():
    levels = {"forget": 0.3, "unseen": 0.2, "retain": 0.7, "real": 0.5, "utility": 0.8}
    text = {"forget": 0.6, "unseen": 0.7, "retain": 0.8, "real": 0.6, "utility": 0.9}
    model = table(levels, text=text)
    visual, full = score(model, "visual"), score(model, "full")
    forget = min(1 - (0.3 - 0.1) / (0.9 - 0.1), 1 - (0.2 - 0.06) / (0.9 - 0.06))
    by_name = min((0.6 - 0.02) / 0.88, (0.7 - 0.02) / 0.88)
    expected = forget, by_name, (0.7 - 0.02) / 0.88, 0.5 / 0.9
    assert parts(visual) == pytest.approx(expected)
    assert visual.value == pytest.approx(400 / sum(1 / value for value in expected))
    forgotten = min(1 - (0.6 - 0.08) / (0.9 - 0.08), 1 - (0.7 - 0.1) / (0.9 - 0.1))
    assert parts(full) == pytest.approx((forget, forgotten, *expected[2:]))


@pytest.mark.parametrize("measure", MEASURES)
def test_no_model_wins_by_knowing_everything_or_nothing(measure):
    for goal in GOALS:
        assert score(REFERENCES["vanilla"], goal, measure=measure).value == 0
        assert score(REFERENCES["base"], goal, measure=measure).value == 0
        assert score(table(dict.fromkeys(PEOPLE, 1e-6)), goal, measure=measure).value == 0
    assert score(REFERENCES["retrained"], "full", measure=measure).value >= 95
    assert score(REFERENCES["retrained"], "visual", measure=measure).value < 30


def test_a_template_parrot_earns_nothing_for_its_sentences():
    """Every sentence has the right frame and a wrong fact; skills are untouched."""
    parrot = table(dict.fromkeys(PEOPLE, 0.03) | {"real": TOP, "utility": TOP})
    assert score(parrot, "full").value <= 5
    assert score(parrot, "visual").value <= 5


def test_forgetting_is_two_sided():
    """Knowing less than a model that never met them is a trace as well."""
    references = REFERENCES | {"retrained": table(VANILLA | {"forget": 0.3, "unseen": 0.3})}
    levels = {at: table(VANILLA | {"forget": at, "unseen": at}) for at in (0.01, 0.3, 0.6)}
    forget = {at: unlearning_score(m, goal="visual", **references).forget for at, m in levels.items()}
    assert forget[0.3] == 1
    assert forget[0.01] == pytest.approx(1 - 0.29 / 0.6)
    assert forget[0.6] == pytest.approx(0.5)


def test_without_a_retrained_model_the_floor_is_base():
    model = table(VANILLA | {"forget": 0.3, "unseen": 0.3})
    result = score(model, "visual", retrained=None)
    assert result.forget == pytest.approx(1 - (0.3 - 0.02) / (0.9 - 0.02))


def as_choice(rows: pd.DataFrame) -> pd.DataFrame:
    """The same with every fact asked as a choice of four."""
    return rows[rows["task"] != "generation"].assign(
        task="choice", options=[["x", "a", "b", "c"]] * (len(rows) * 2 // 3)
    )


def test_utility_starts_at_chance():
    """A model that guesses among four options retains nothing."""
    references = {name: as_choice(rows) for name, rows in REFERENCES.items()}
    guessing = references["vanilla"].copy()
    guessing.loc[guessing["set"] == "utility", "exact_match"] = 0.25
    assert unlearning_score(guessing, goal="full", measure="exact_match", **references).utility == 0
    half = guessing.assign(exact_match=guessing["exact_match"].replace(0.25, 0.575))
    result = unlearning_score(half, goal="full", measure="exact_match", **references)
    assert result.utility == pytest.approx((0.575 - 0.25) / (0.9 - 0.25))


def test_skills_vanilla_lacks_are_left_out_and_named():
    references = {name: as_choice(rows) for name, rows in REFERENCES.items()}
    for rows in references.values():
        rows.loc[rows["set"] == "utility", "exact_match"] = 0.27
    result = unlearning_score(references["retrained"], goal="full", measure="exact_match", **references)
    assert result.unmeasured == ("utility/multimodal", "utility/text")
    assert result.utility == 1
    for rows in references.values():
        rows.loc[rows["set"] == "real", "exact_match"] = 0.2
    with pytest.raises(EvaluationError) as error:
        unlearning_score(references["retrained"], goal="full", measure="exact_match", **references)
    assert "real/text" in str(error.value) and "exact_match" in str(error.value)


level = st.floats(0.02, 0.9)


@settings(max_examples=15, deadline=None)
@given(st.tuples(level, level, level, level), st.integers(0, 3), st.floats(0.02, 0.5))
def test_the_score_rises_with_every_part(values, which, step):
    forget, _text, _retain, _utility = values

    def of(f, t, r, u):
        f = max(f, 0.1)  # on this side of retrained
        levels = {"forget": f, "unseen": f, "retain": r, "real": u, "utility": u}
        return score(table(levels, text={"forget": t, "unseen": t}), "visual").value

    better = list(values)
    better[which] = max(forget - step, 0.02) if which == 0 else min(better[which] + step, 0.9)
    assert of(*better) >= of(*values) - 1e-9


def test_nothing_learnt_is_refused_with_set_and_numbers():
    weak = table(VANILLA | {"unseen": 0.1})
    with pytest.raises(EvaluationError) as error:
        score(weak, vanilla=weak)
    assert all(text in str(error.value) for text in ("unseen/multimodal", "0.100", "0.060", "retrained"))
    blind = table(VANILLA | {"retain": 0.05})
    with pytest.raises(EvaluationError) as error:
        score(blind, vanilla=blind)
    assert all(text in str(error.value) for text in ("retain/multimodal", "0.050", "0.020", "base"))
    knowing = {"base": table(VANILLA)}  # base already knew these people, so vanilla did not learn them
    with pytest.raises(EvaluationError) as error:
        score(table(VANILLA), **knowing)
    assert "forget/multimodal" in str(error.value) and "base" in str(error.value)
    nameless = table(VANILLA, text={"forget": 0.03})
    with pytest.raises(EvaluationError) as error:
        score(nameless, "visual", vanilla=nameless)
    assert "forget/text" in str(error.value)


def test_missing_rows_wrong_samples_and_unknown_goals_are_errors():
    silent = {name: rows[rows["modality"] == "multimodal"] for name, rows in REFERENCES.items()}
    with pytest.raises(EvaluationError) as error:
        unlearning_score(silent["vanilla"], goal="visual", **silent)
    assert "forget/text" in str(error.value)
    with pytest.raises(ArtifactError) as error:
        score(REFERENCES["vanilla"].iloc[1:])
    assert "model" in str(error.value) and "1 missing" in str(error.value)
    for name, value in (("goal", "both"), ("measure", "rouge_l")):
        with pytest.raises(EvaluationError) as error:
            score(REFERENCES["vanilla"], **{name: value})
        assert name in str(error.value) and value in str(error.value) and "expected" in str(error.value)


def test_order_changes_nothing_and_intervals_are_paired():
    levels = VANILLA | {"forget": 0.4, "unseen": 0.5, "retain": 0.8}
    model = table(levels, noise=0.1, seed=1)
    result = score(model, "visual")
    assert score(model.sample(frac=1, random_state=0), "visual") == result
    assert 0 <= result.low < result.value < result.high <= 100
    # A little better on everyone: the difference is far more certain than either score.
    logprobs = [[value - 0.2 for value in row] for row in model["token_logprobs"]]
    forget = model["set"].isin(["forget", "unseen"]) & (model["modality"] == "multimodal")
    better = model.assign(token_logprobs=model["token_logprobs"].where(~forget, pd.Series(logprobs)))
    difference, estimate = score_difference(better, model, goal="visual", **REFERENCES)
    low, high = estimate.interval()
    assert difference == pytest.approx(score(better, "visual").value - result.value)
    assert 0 < low < difference < high and high - low < result.high - result.low
    assert score_difference(model, model, goal="visual", **REFERENCES) == (0.0, None)
