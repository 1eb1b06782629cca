"""A study's table: means over seeds, settings chosen on validation people only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efface.errors import EvaluationError
from efface.evaluation.studies import COSTS, Run, compare
from tests.study_results import SKILL, _prepared, score_table


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return _prepared(tmp_path_factory.mktemp("made") / "prepared", 16, 6, np.random.default_rng(0))


def tables(samples, seed, **models):
    """Score tables; every second person of those to forget or keep is for validation."""
    by_model = {}
    for name, shares in {
        "base": SKILL["base"],
        "vanilla": SKILL["vanilla"],
        "retrained": SKILL["retrained"],
        **models,
    }.items():
        table = score_table(name, samples, shares, np.random.default_rng([seed, len(name)]))
        people = {entity: i for i, entity in enumerate(sorted(set(table["entity_id"])))}
        aside = table["entity_id"].map(people) % 2 == 1
        table["part"] = np.where(aside & ~table["set"].isin(["real", "utility"]), "validation", "test")
        by_model[name] = table
    return by_model


def runs(samples, seeds, fraction=0.1, **models):
    all_runs = []
    for seed in seeds:
        by_model = tables(samples, seed, **models)
        for name, table in by_model.items():
            model = name.split("_at_")[0]
            all_runs.append(
                Run(
                    fraction,
                    seed,
                    model,
                    name,
                    table,
                    by_model["base"],
                    by_model["vanilla"],
                    by_model["retrained"],
                )
            )
    return all_runs


def spoil(table, part):
    """Let the model lose the retain people of that part."""
    rows_of_part = (table["part"] == part) & (table["set"] == "retain")
    table.loc[rows_of_part, ["rouge_l", "exact_match", "generation"]] = [0.0, 0.0, ""]
    table["token_logprobs"] = [
        [-9.0] * len(row) if spoilt else row
        for row, spoilt in zip(table["token_logprobs"], rows_of_part, strict=True)
    ]


def exact_match(table, kind, modality):
    rows = table[(table["part"] == "test") & (table["set"] == kind) & (table["modality"] == modality)]
    return rows["exact_match"].dropna().astype(float).mean()


def test_a_number_is_the_mean_over_seeds_with_students_interval(samples):
    all_runs = runs(samples, (0, 1, 2), npo=SKILL["npo"])
    line = next(line for line in compare(all_runs, goal="visual") if line.model == "npo")
    values = [exact_match(run.table, "retain", "text") for run in all_runs if run.model == "npo"]
    mean = line.numbers["retain, by name"]
    assert mean.value == pytest.approx(np.mean(values)) and mean.seeds == pytest.approx(values)
    half = 4.302652729911275 * np.std(values, ddof=1) / 3**0.5  # t of 2 degrees of freedom, two-sided 95 %
    assert mean.interval == pytest.approx((mean.value - half, mean.value + half))
    assert line.seeds == (0, 1, 2) and line.variants == 1 and line.refused is None


def test_untouched_scores_nothing_and_one_seed_has_no_interval(samples):
    lines = {line.model: line for line in compare(runs(samples, (0,)), goal="visual")}
    assert lines["vanilla"].numbers["score"].value == 0
    assert lines["vanilla"].numbers["score"].interval is None


def test_settings_are_chosen_on_validation_people_and_reported_on_the_others(samples):
    models = {"npo_at_low": SKILL["npo"], "npo_at_high": (0.7, 0.99, 0.98, 0.88)}
    all_runs = runs(samples, (0, 1), **models)
    line = next(line for line in compare(all_runs, goal="visual") if line.model == "npo")
    assert (line.variant, line.variants) == ("npo_at_low", 2), "the variant that forgets"
    # What the test people say has no part in the choice.
    for run in all_runs:
        if run.variant == "npo_at_low":
            spoil(run.table, "test")
    again = next(line for line in compare(all_runs, goal="visual") if line.model == "npo")
    assert again.variant == "npo_at_low"
    for run in all_runs:
        if run.variant == "npo_at_low":
            spoil(run.table, "validation")
    assert next(x for x in compare(all_runs, goal="visual") if x.model == "npo").variant == "npo_at_high"


def test_where_vanilla_never_learnt_there_is_a_reason_instead_of_a_score(samples):
    all_runs = [
        Run(r.fraction, r.seed, r.model, r.variant, r.table, r.base, r.retrained, r.retrained)
        for r in runs(samples, (0,), npo=SKILL["npo"])
    ]
    line = next(line for line in compare(all_runs, goal="visual") if line.model == "npo")
    assert "score" not in line.numbers and "forget/multimodal" in line.refused
    assert "forget, picture" in line.numbers


def test_fractions_are_lines_of_their_own(samples):
    all_runs = [*runs(samples, (0,), 0.05), *runs(samples, (0,), 0.1)]
    assert [(line.fraction, line.model) for line in compare(all_runs, goal="full")] == [
        (0.05, "base"),
        (0.05, "vanilla"),
        (0.05, "retrained"),
        (0.1, "base"),
        (0.1, "vanilla"),
        (0.1, "retrained"),
    ]


def test_nothing_finished_is_an_error():
    with pytest.raises(EvaluationError, match="no run of the study finished"):
        compare([], goal="visual")


def test_settings_that_no_score_can_tell_apart_are_not_called_chosen(samples):
    """A world whose vanilla never learnt has no score: the first settings are shown, with the reason."""
    all_runs = runs(samples, (0,), npo_at_low=SKILL["npo"], npo_at_high=SKILL["mmunlearner"])
    all_runs = [replace(run, vanilla=run.retrained) for run in all_runs]
    line = next(line for line in compare(all_runs, goal="visual") if line.model == "npo")
    assert (line.variant, line.variants) == ("npo_at_low", 2)
    assert line.refused.startswith("npo: first settings of 2; ")
    assert "score" not in line.numbers


def test_costs_are_means_over_seeds_and_missing_where_one_is_unknown(samples):
    all_runs = [replace(run, costs={COSTS[0]: 0.1 * (run.seed + 1)}) for run in runs(samples, (0, 1))]
    vanilla = next(line for line in compare(all_runs, goal="visual") if line.model == "vanilla")
    assert vanilla.numbers[COSTS[0]].value == pytest.approx(0.15)
    assert COSTS[1] not in vanilla.numbers
    all_runs = [replace(run, costs={}) if run.seed == 1 else run for run in all_runs]
    assert COSTS[0] not in compare(all_runs, goal="visual")[0].numbers


def test_gaps_after_attacks_are_means_over_the_seeds_that_have_them(samples):
    all_runs = [replace(run, gaps={"relearn": 0.2 + 0.2 * run.seed}) for run in runs(samples, (0, 1, 2))]
    all_runs = [replace(run, gaps={}) if run.seed == 2 else run for run in all_runs]
    line = compare(all_runs, goal="visual")[0]
    assert line.gaps["relearn"].value == pytest.approx(0.3) and len(line.gaps["relearn"].seeds) == 2
