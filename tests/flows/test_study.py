"""The cells of a study, what each changes, and a whole study by real DVC and Prefect."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efface.errors import EffaceError
from flows import study
from flows.commands import CommandFailed
from flows.study import Cell, failed_methods, work_of
from tasks.config import checked
from tasks.config.file import read_yaml
from tasks.studies.plan import plan_of, settings_file
from tests.flows.project import PROJECT, make_project, table

MASKED = {"method": "mmunlearner", "start": "vanilla", "mask": "saliency", "learning_rate": 1e-5}
NPO = {"method": "npo", "start": "vanilla", "mask": "none"}
RATES = {"learning_rate": [1e-5, 2e-5]}
GRID = {
    "mmunlearner": RATES,
    "npo": {"learning_rate": [1e-5], "beta": [0.1, 0.4]},
    "manu": {"fraction": [0.1, 0.2]},
}


def parameters(**study):
    document = read_yaml(PROJECT / "params.yaml")
    document["unlearn"]["methods"] = {"mmunlearner": MASKED, "npo": NPO}
    document["prune"]["methods"] = {"manu": {"selection": "importance", "fraction": 0.3}}
    document["requests"]["method"] = "npo"
    document["attack"]["models"] = []
    document["study"] |= {"methods": {}, "grid": GRID, "seeds": [0, 1], "folds": 3} | study
    return checked(document, Path("params.yaml"))


def changes(cell, params, chosen=None):
    plan = plan_of(params)
    work = work_of(cell, params, plan, chosen or dict.fromkeys(plan.methods, 0))
    return work, dict(change.removeprefix("++").split("=", 1) for change in work.changes if "=" in change)


def test_every_method_has_its_control_which_tries_as_many_settings():
    plan = plan_of(parameters())
    assert plan.controls == {"mmunlearner": "mmunlearner_random_mask", "manu": "manu_random"}
    assert list(plan.methods) == ["mmunlearner", "mmunlearner_random_mask", "npo", "manu", "manu_random"]
    control = plan.methods["mmunlearner_random_mask"]
    assert control.entry == MASKED | {"mask": "random"} and control.needs == {"saliency", "random"}
    assert control.settings == plan.methods["mmunlearner"].settings
    assert plan.methods["manu_random"].entry["selection"] == "random"
    assert plan.methods["npo"].settings == [
        {"learning_rate": 1e-5, "beta": 0.1},
        {"learning_rate": 1e-5, "beta": 0.4},
    ]
    assert plan.tried == 2


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"grid": GRID | {"npo": {"beta": [0.1, 0.2, 0.4]}}}, ["study.grid", "2 of mmunlearner"]),
        ({"grid": {"mmunlearner": RATES}}, ["study.grid", "1 of npo", "1 of manu"]),
        ({"folds": 61}, ["study.folds is 61", "60"]),
        ({"folds_per_seed": 4}, ["folds_per_seed is 4", "3"]),
    ],
)
def test_unequal_budgets_and_more_folds_than_people_are_refused(study, words):
    with pytest.raises(EffaceError) as error:
        plan_of(parameters(**study))
    assert not [word for word in words if word not in str(error.value)]


def test_a_method_without_settings_needs_no_grid():
    prompt = {"system_prompt": {"method": "system_prompt", "start": "vanilla", "mask": "none"}}
    assert plan_of(parameters(methods=prompt)).tried == 2


def test_a_cell_that_tries_settings_changes_all_methods_at_once():
    work, values = changes(Cell(100, 1, 1), parameters())
    assert values["seed"] == values["avatars.seed"] == "100"
    assert (values["split.folds"], values["split.fold"], values["split.validation_fraction"]) == (
        "3",
        "1",
        "0.0",
    )
    assert values["unlearn.methods.mmunlearner.learning_rate"] == "2e-05"
    assert values["unlearn.methods.mmunlearner_random_mask.learning_rate"] == "2e-05"
    assert values["unlearn.methods.mmunlearner_random_mask.method"] == '"mmunlearner"'
    assert values["unlearn.methods.npo.beta"] == "0.4" and values["prune.methods.manu.fraction"] == "0.2"
    assert values["saliency.controls"] == '["random"]' and work.changes[0] == "~study"
    assert "evaluate@retrained" not in work.stages(set())
    assert {"evaluate@vanilla", "evaluate_unlearned@npo", "evaluate_pruned@manu"} <= set(work.stages(set()))


def test_the_first_fold_of_a_seed_has_retrained_and_the_chosen_settings():
    params = parameters(attacks=True)
    chosen = {"mmunlearner": 1, "npo": 0}
    work, values = changes(Cell(0, 0), params, chosen)
    assert work.methods == ("mmunlearner", "npo") and "evaluate@retrained" in work.stages(set())
    assert values["unlearn.methods.mmunlearner.learning_rate"] == "2e-05"
    assert "attack@retrained" in work.stages(set()) and "attack@npo" not in work.stages({"npo"})
    assert {"data/runs/saliency.json", "data/runs/retrained.json"} <= set(work.results(set()))
    later, _ = changes(Cell(0, 2), params, chosen)
    assert not [stage for stage in later.stages(set()) if "retrained" in stage or "attack" in stage]


def test_base_and_vanilla_of_a_seed_depend_on_no_fold():
    work, values = changes(Cell(1), parameters())
    assert values == {"seed": "1", "avatars.seed": "1"} and work.stages(set()) == [
        "score@base",
        "score@vanilla",
    ]
    assert work.results(set()) == []


@pytest.mark.parametrize(
    ("stage", "methods"),
    [
        ("unlearn@npo", {"npo"}),
        ("evaluate_pruned@manu", {"manu"}),
        ("control@random", {"mmunlearner_random_mask"}),
        ("saliency", {"mmunlearner", "mmunlearner_random_mask"}),
        ("importance", {"manu", "manu_random"}),
        ("vanilla", set()),
    ],
)
def test_a_failed_stage_leaves_out_the_methods_that_need_it(stage, methods):
    work, _ = changes(Cell(0, 1), parameters())
    error = CommandFailed("dvc exp run", 1, [f"ERROR: failed to reproduce '{stage}': exited with 1"])
    assert failed_methods(error, work) == methods


def test_the_chosen_settings_are_a_part_of_params_yaml():
    params = parameters()
    chosen = {"mmunlearner": 1, "mmunlearner_random_mask": 0, "npo": 1, "manu": 0}
    assert settings_file(params, plan_of(params), chosen) == {
        "unlearn": {
            "methods": {
                "mmunlearner": {"learning_rate": 2e-5},
                "npo": {"learning_rate": 1e-5, "beta": 0.4},
            }
        },
        "prune": {"methods": {"manu": {"fraction": 0.1}}},
    }


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (["one"], ["one", "done"]),
        (
            ["one", "other"],
            ["one", "done", "other"],
        ),  # at its end, another process has just started
        (["other"], []),  # so the experiment is to be started again
        (["one", "one"], ["one", "done", "one"]),
    ],
)
def test_an_experiment_ends_where_dvc_takes_one_of_another_process(monkeypatch, started, expected):
    def dvc(*arguments, log, environment, stop_at):
        assert arguments[:5] == ("--wait-for-lock", "exp", "run", "--temp", "--name")
        lines = []
        for name in started:
            lines.append(f"Reproducing experiment '{name}'")
            if stop_at(lines[-1]):
                return lines
            assert not study._starting.locked(), "others may start"
            lines.append("done")
        return lines

    monkeypatch.setattr(study, "dvc", dvc)
    lines = study._run_experiment("one", ("score@base",), print, {})
    assert [line.removeprefix("Reproducing experiment ").strip("'") for line in lines] == expected
    assert not study._starting.locked()


def test_an_experiment_that_dvc_never_starts_is_given_up():
    study._require_attempts("one", 4)
    with pytest.raises(EffaceError) as error:
        study._require_attempts("one", 5)
    assert "'one'" in str(error.value) and "5" in str(error.value)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_chooses_settings_and_restores_what_is_finished(tmp_path):
    """Two settings on one fold of the tuning seed, two folds of two seeds; again: nothing is computed."""
    project = make_project(
        tmp_path / "project",
        {
            "study.seeds": [0, 1],
            "study.folds": 2,
            "study.tuning_folds": 1,
            "study.grid": {"mmunlearner": RATES},
            "unlearn.methods": {"mmunlearner": MASKED},
            "prune.methods": {},
            "requests.method": "mmunlearner",
        },
    )
    output = project.run("flows.study", seconds=3000)
    outcomes = table(output)
    seeds = [f"seed {seed}: base and vanilla" for seed in (100, 0, 1)]
    tuning = [f"seed 100, fold 0, setting {index}" for index in (0, 1)]
    reported = [f"seed {seed}, fold {fold}" for seed in (0, 1) for fold in (0, 1)]
    assert outcomes == dict.fromkeys([*seeds, *tuning, *reported], "ran")
    assert output.count("python -m tasks vanilla") == 3, "one for each seed, whatever its folds"
    assert output.count("python -m tasks retrained") == 2
    results = json.loads(project.read("data/study/results.json"))
    assert results["folds"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert results["controls"] == {"mmunlearner": "mmunlearner_random_mask"}
    assert {"base", "vanilla", "retrained", "mmunlearner", "mmunlearner_random_mask"} <= results[
        "lines"
    ].keys()
    assert "<html" in project.read("data/study/index.html")
    split = [
        json.loads(project.read(f"data/study/seed0/fold{fold}/runs/evaluate@vanilla.json"))["inputs"]
        for fold in (0, 1)
    ]
    assert split[0]["answers"] == split[1]["answers"] and split[0]["split"] != split[1]["split"]

    project.run("tasks", "use", "data/study/settings.yaml")
    values = YAML(typ="safe").load(project.read("params.yaml"))
    assert values["unlearn"]["methods"]["mmunlearner"]["learning_rate"] in RATES["learning_rate"]
    assert set(table(project.run("flows.study", seconds=3000)).values()) <= {"cached", "restored"}
