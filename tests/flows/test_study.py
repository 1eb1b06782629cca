"""The cells of a study, what each changes, and a whole study by real DVC and Prefect."""

import json
from pathlib import Path

import pytest

from flows.study import Cell, cells_of, is_tuned, overrides, targets
from tasks.config import checked
from tasks.config.file import read_yaml
from tests.flows.project import PROJECT, make_project, table

TITLE = "seed {}, forget 0.1: {}"


def parameters(**study):
    document = read_yaml(PROJECT / "params.yaml")
    document["unlearn"]["methods"] = {"npo": {"start": "vanilla", "mask": "saliency", "learning_rate": 1e-5}}
    document["prune"]["methods"] = {}
    document["requests"]["method"] = "npo"
    document["study"] |= {"methods": {}, "grid": {}, "tuning_seeds": 1, "seeds": [0, 1]} | study
    return checked(document, Path("params.yaml"))


def test_cells_are_all_combinations_after_their_reference_models():
    params = parameters(fractions=[0.05, 0.1], grid={"npo": {"learning_rate": [1e-5, 2e-5], "beta": [0.1]}})
    cells = cells_of(params)
    references = [Cell(seed, fraction) for seed in (0, 1) for fraction in (0.05, 0.1)]
    assert cells[:4] == references and len(cells) == 4 + 4 * 2
    assert cells[4] == Cell(0, 0.05, "npo", {"learning_rate": 1e-5, "beta": 0.1})
    assert len({cell.name for cell in cells}) == len(cells)


def test_settings_are_selected_where_there_are_several():
    params = parameters(grid={"npo": {"learning_rate": [1e-5, 2e-5]}})
    assert is_tuned(Cell(0, 0.1, "npo", {"learning_rate": 1e-5}), params)
    assert not is_tuned(Cell(0, 0.1), params)
    params = parameters(grid={"npo": {"learning_rate": [1e-5]}})
    assert not is_tuned(Cell(0, 0.1, "npo", {"learning_rate": 1e-5}), params)


def test_the_name_of_an_experiment_is_one_that_git_allows():
    cell = Cell(0, 0.1, "npo", {"learning_rate": 2e-05, "instruction": "Do not, please."})
    assert cell.name == "seed-0-forget-0.1-npo-learning_rate-2e-05-instruction-Do-not-please"


def test_overrides_set_the_seed_and_the_settings_and_move_methods_of_the_study():
    extra = {"kl_min": {"start": "vanilla", "mask": "none", "epochs": 3}}
    params = parameters(methods=extra, attacks=False)
    assert overrides(Cell(4, 0.1, "npo", {"beta": 0.2}), params) == [
        "++seed=4",
        "++avatars.seed=4",
        "++split.forget_fraction=0.1",
        "++unlearn.methods.npo.beta=0.2",
    ]
    changes = overrides(Cell(4, 0.1, "kl_min"), params)
    assert changes[0] == "~study"
    assert {'++unlearn.methods.kl_min.start="vanilla"', "++unlearn.methods.kl_min.epochs=3"} <= set(changes)


def test_what_methods_share_is_made_with_the_reference_models():
    params = parameters()
    stages = ["evaluate@base", "evaluate@vanilla", "evaluate@retrained", "saliency"]
    assert targets(Cell(0, 0.1), params, attacks=False) == stages
    assert targets(Cell(0, 0.1, "npo"), params, attacks=True) == ["evaluate_unlearned@npo", "attack@npo"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_selects_settings_and_restores_what_is_finished(tmp_path):
    """Two settings on the first seed, the better one on the second; again: nothing is computed."""
    rates = [1.0e-6, 4.0e-5]
    project = make_project(
        tmp_path / "project",
        {
            "study.seeds": [0, 1],
            "study.grid": {"npo": {"learning_rate": rates}},
            "unlearn.methods": {"npo": {"start": "vanilla", "mask": "none"}},
            "prune.methods": {},
            "requests.method": "npo",
            "attack.run": ["cross_modal"],
        },
    )
    outcomes = table(project.run("flows.study", seconds=900))
    variants = [f"npo, learning_rate {rate}" for rate in rates]
    tuning = [TITLE.format(0, variant) for variant in ("reference models", *variants)]
    assert all(outcomes[title] == "ran" for title in tuning)
    (selected,) = [variant for variant in variants if TITLE.format(1, variant) in outcomes]
    assert set(outcomes.values()) == {"ran"}
    results = json.loads(project.read("data/study/results.json"))
    line = {line["model"]: line for line in results["lines"]}["npo"]
    assert (line["variant"], line["seeds"], line["variants"]) == (selected, [0, 1], 2)
    assert {"no attack, gap", "cross_modal, gap"} <= line["numbers"].keys()
    rows = json.loads(project.run("dvc", "exp", "show", "--json"))
    names = {experiment["name"] for row in rows for experiment in row["experiments"] or []}
    assert Cell(1, 0.1, "npo", {"learning_rate": float(selected.split()[-1])}).name in names

    assert set(table(project.run("flows.study", seconds=900)).values()) <= {"cached", "restored"}
    # The pipeline fetches from the cache what the study's cell of its own seed made.
    assert "Running stage" not in project.repro("evaluate@vanilla")
