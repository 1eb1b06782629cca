"""The score and its statistics: by the definition, who can win it, who is refused, intervals over people."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import ArtifactError, EvaluationError
from efface.evaluation.goals import Means, score_difference, unlearning_score, validation_score
from efface.evaluation.people import cell_means, forget_retain_curve, mean_interval

KNOWN = {"forget": 1.0, "unseen": 1.0, "retain": 1.0, "real": 1.0, "utility": 1.0}
PEOPLE = {"forget": 4, "unseen": 4, "retain": 6, "real": 3, "utility": 20}


def table(shares, *, text=None, part="test", seed=0):
    """Score table of a model that knows a share of each set; ``text`` replaces the share by name."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, people in PEOPLE.items():
        for person in range(people):
            entity = f"{'forget' if name == 'unseen' else name}/{person}"
            for modality in ("multimodal", "text"):
                share = (text or {}).get(name, shares[name]) if modality == "text" else shares[name]
                for question in range(3):
                    value = float(np.clip(share + (rng.uniform(-0.1, 0.1) if 0 < share < 1 else 0), 0, 1))
                    rows.append(
                        {
                            "sample_id": f"{name}/{person}/{modality}/{question}",
                            "entity_id": entity,
                            "set": name,
                            "part": part,
                            "modality": modality,
                            "question": "?",
                            "gold": "x",
                            "rouge_l": value,
                            "exact_match": value,
                        }
                    )
    return pd.DataFrame(rows)


VANILLA = table(KNOWN)
RETRAINED = table(KNOWN | {"forget": 0.2, "unseen": 0.2})


def scored(model, goal="full", **options):
    return unlearning_score(model, vanilla=VANILLA, retrained=RETRAINED, goal=goal, resamples=50, **options)


def test_untouched_and_destroyed_score_nothing_and_retrained_all():
    assert scored(VANILLA).value == 0 and scored(VANILLA, "visual").value == 0
    nothing = table(dict.fromkeys(KNOWN, 0.0))
    assert scored(nothing).value == 0 and scored(nothing, "visual").value == 0
    assert scored(nothing).forget == 1.0
    assert scored(RETRAINED).value == pytest.approx(100, abs=1)
    assert scored(RETRAINED, "visual").value < 60  # it knows nobody by name either


def test_means_shared_by_several_scores_change_none_of_them():
    model, means = table({**KNOWN, "forget": 0.3, "unseen": 0.4}, seed=1), Means()
    for other in (model, VANILLA, model):
        for options in ({"goal": "visual"}, {"goal": "full"}, {"goal": "full", "seed": 1}):
            assert scored(other, **options, means=means) == scored(other, **options)


def test_golden_parts():
    vanilla, retrained = table(KNOWN), table({**KNOWN, "forget": 0, "unseen": 0})
    model = table({**KNOWN, "forget": 0, "unseen": 1, "real": 0}, text={"forget": 1, "unseen": 1, "real": 1})
    visual = unlearning_score(model, vanilla=vanilla, retrained=retrained, goal="visual")
    # Forget: mean knowledge 0.5 of 1. Utility: real (0 by picture, 1 by name) and skills (1), mean 0.75.
    assert (visual.forget, visual.text, visual.retain, visual.utility) == (0.5, 1.0, 1.0, 0.75)
    assert visual.value == pytest.approx(100 * 4 / (1 / 0.5 + 1 + 1 + 1 / 0.75))
    full = unlearning_score(model, vanilla=vanilla, retrained=retrained, goal="full")
    assert (full.text, full.value) == (0.0, 0.0)


def test_a_model_that_never_learnt_is_refused():
    weak = table(KNOWN | {"unseen": 0.0})
    with pytest.raises(EvaluationError, match=r"scores 0\.000 on unseen/multimodal/rouge_l, retrained 0\.2"):
        unlearning_score(weak, vanilla=weak, retrained=RETRAINED, goal="full")
    text = table(KNOWN, text={"forget": 0.0})
    with pytest.raises(EvaluationError, match="forget/text/rouge_l"):
        unlearning_score(text, vanilla=text, retrained=table(KNOWN | {"forget": 0, "unseen": 0}), goal="full")
    blind = table(KNOWN | {"retain": 0.0})
    with pytest.raises(EvaluationError, match=r"nothing whose keeping could be measured \(retain\)"):
        unlearning_score(blind, vanilla=blind, retrained=RETRAINED, goal="full")


def test_missing_rows_other_samples_and_unknown_goals_are_errors():
    silent = [t[t["modality"] == "multimodal"] for t in (VANILLA, RETRAINED)]
    with pytest.raises(EvaluationError, match="part 'text' of the score is not available.*forget/text"):
        unlearning_score(silent[0], vanilla=silent[0], retrained=silent[1], goal="visual")
    with pytest.raises(ArtifactError, match="made from different samples"):
        scored(VANILLA.iloc[1:])
    with pytest.raises(EvaluationError, match="goal is 'both': expected one of visual, full"):
        scored(VANILLA, "both")
    with pytest.raises(ValueError, match="not a finite number"):
        scored(VANILLA.assign(nll_gold=float("nan")))


def test_order_changes_nothing_and_draws_are_paired_and_seeded():
    model = table({**KNOWN, "forget": 0.4, "unseen": 0.5, "retain": 0.9}, seed=1)
    shuffled = model.sample(frac=1, random_state=0)
    assert scored(shuffled) == scored(model)
    found = scored(model)
    assert found.low < found.value < found.high
    assert found != scored(model, seed=1)
    better = table({**KNOWN, "forget": 0.3, "unseen": 0.4, "retain": 0.9}, seed=1)
    difference, (low, high) = score_difference(
        better, model, vanilla=VANILLA, retrained=RETRAINED, goal="full", resamples=200
    )
    assert difference == pytest.approx(scored(better).value - found.value)
    assert 0 < low < difference < high
    # Paired: narrower than the interval of either.
    assert high - low < found.high - found.low
    same = score_difference(model, model, vanilla=VANILLA, retrained=RETRAINED, goal="full", resamples=20)
    assert same == (0.0, (0.0, 0.0))


def test_cell_means_draw_people_not_rows():
    """Slow reference: the draws told by the weights of an indicator, one person at a time."""
    rows = table({**KNOWN, "forget": 0.5})
    cell = ("forget", "multimodal", "rouge_l")
    means = cell_means(rows, [cell], resamples=200, seed=3)[cell]
    here = rows[(rows["set"] == "forget") & (rows["modality"] == "multimodal")]
    assert means[0] == pytest.approx(here["rouge_l"].mean())
    people = sorted(here["entity_id"].unique())
    asked = [rows.assign(rouge_l=(rows["entity_id"] == p).astype(float)) for p in people]
    shares = [cell_means(indicator, [cell], resamples=200, seed=3)[cell] for indicator in asked]
    by_person = here.groupby("entity_id")["rouge_l"].mean()
    assert means == pytest.approx(sum(s * by_person[p] for s, p in zip(shares, people, strict=True)))
    assert np.all(np.isclose(np.stack(shares) * 4 % 1, 0) | np.isclose(np.stack(shares) * 4 % 1, 1))
    both = rows.assign(rouge_l=(rows["entity_id"] == "forget/0").astype(float))
    together = cell_means(both, [cell, ("unseen", "text", "rouge_l")], resamples=50)
    assert np.array_equal(*together.values())  # the same people, drawn together
    one = rows[rows["entity_id"] == "forget/0"]
    assert cell_means(one, [cell])[cell].shape == (1,)
    assert cell_means(rows, [("holdout", "text", "rouge_l")]) == {}


def test_interval_over_seeds_golden():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302653.
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert mean_interval([1.0]) is None
    with pytest.raises(ValueError, match="finite values"):
        mean_interval([1.0, float("nan")])


share = st.floats(0, 1)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(share, share), max_size=8))
def test_the_front_holds_exactly_what_nothing_beats(points):
    rows = {row["name"]: row["on_front"] for row in forget_retain_curve(points)}
    for name, (forget, retain) in points.items():
        beaten = any((f < forget and r >= retain) or (f <= forget and r > retain) for f, r in points.values())
        assert rows[name] is (not beaten)


def test_settings_are_chosen_without_what_no_validation_person_can_be_asked():
    """Skills and real people are never for validation: nobody of theirs is forgotten or kept."""

    def split(model):
        people = model[~model["set"].isin(["real", "utility"])].assign(part="validation")
        return pd.concat([model, people], ignore_index=True)

    yardsticks = {"vanilla": split(VANILLA), "retrained": split(RETRAINED)}
    half = split(table(KNOWN | {"forget": 0.6, "unseen": 0.6}, text=KNOWN))
    score = validation_score(half, **yardsticks, goal="visual")
    assert score == pytest.approx(100 * 3 / (1 / 0.5 + 1 + 1), rel=0.1)
    assert validation_score(split(VANILLA), **yardsticks, goal="visual") == 0
    with pytest.raises(EvaluationError, match="forget"):
        validation_score(VANILLA, vanilla=VANILLA, retrained=RETRAINED, goal="visual")
