"""The results of a study's experiments on disk become a choice of settings and a page."""

import json
import shutil

import pytest

from efface.errors import ArtifactError
from tasks.config import checked, use_profile
from tasks.config.file import default_values, overlaid, read_yaml
from tasks.studies import comparison
from tasks.studies.cells import Finished, study_cells
from tasks.studies.plan import plan_of
from tests.efface.evaluation.test_goals import BASE, VANILLA, table
from tests.efface.evaluation.test_studies import left, on_fold
from tests.tiny_project import PROJECT

MASKED = {"method": "mmunlearner", "start": "vanilla", "mask": "saliency", "learning_rate": 1e-5}
CONTROL = "mmunlearner_random_mask"


def parameters(rates=(1e-5, 2e-5)):
    values = overlaid(default_values(), {"requests": {"method": "mmunlearner"}, "attack": {"models": []}})
    values["unlearn"]["methods"] = {"mmunlearner": MASKED}
    values["prune"]["methods"] = {}
    values["study"] |= {"seeds": [0, 1], "folds": 2, "grid": {"mmunlearner": {"learning_rate": list(rates)}}}
    return checked(values)


def write(folder, seed, fold, setting=None, shares=(0.3, 0.6)):
    """A cell's files; the shares are what mmunlearner and its control leave."""
    scores = {"base": table(BASE), "vanilla": table(VANILLA)}
    scores |= {"mmunlearner": left(shares[0], seed), CONTROL: left(shares[1], seed + 10)}
    place = folder / f"seed{seed}" / f"fold{fold}" / f"setting{setting}"
    records = {"saliency": ("saliency", {}, {"density": {"total": 0.4}, "stability": {"kappa": 0.5}})}
    records |= {
        "control@random": ("control", {}, {"density": {"total": 0.4}}),
        "retrained": ("retrained", {}, {}),
    }
    for model, mask in (("mmunlearner", "saliency"), (CONTROL, "random")):
        curve = [
            {"step": 0, "forget_known": 1.0, "retain_known": 1.0},
            {"step": 4, "forget_known": 0.2, "retain_known": 0.9},
        ]
        records[f"unlearn@{model}"] = ("unlearn", {"mask": mask}, {"curve": curve})
    for kind in ("scores", "runs"):
        (place / kind).mkdir(parents=True)
    for model, rows in scores.items():
        on_fold(rows, f"{seed}/{fold}").to_parquet(place / "scores" / f"{model}.parquet", index=False)
        (place / "scores" / f"{model}.json").write_text("{}")
    for label, (stage, params, summary) in records.items():
        name = label.partition("@")[2] or None
        content = {"stage": stage, "name": name, "params": params, "summary": summary}
        content |= {"seconds": 10.0, "peak_memory_mib": 500, "device": "cpu", "threads": 1}
        (place / "runs" / f"{label}.json").write_text(json.dumps(content))
    title = f"seed {seed}, fold {fold}"
    return Finished(title, seed, fold, setting, tuple(scores), place)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_cell_is_read_with_its_costs_its_mask_and_its_curve(project):
    (cell,) = study_cells([write(project, 0, 1)])
    assert (cell.seed, cell.fold, cell.tuning, cell.setting) == (0, 1, False, None)
    assert cell.masks == {"mmunlearner": {"density": 0.4, "kappa": 0.5}, CONTROL: {"density": 0.4}}
    assert cell.costs["mmunlearner"]["time, share of retraining"] == 2.0
    assert [point["step"] for point in cell.curves[CONTROL]] == [0, 4]


def test_settings_are_chosen_and_written_where_params_yaml_takes_them(project, capsys):
    params = parameters()
    finished = [write(project, 100, 0, 0, (0.5, 0.2)), write(project, 100, 0, 1, (0.1, 0.7))]
    plan = plan_of(params)
    assert comparison.choose(params, plan, finished) == {"mmunlearner": 1, CONTROL: 0}
    assert "mmunlearner: learning_rate 2e-05" in capsys.readouterr().out
    shutil.copy(PROJECT / "params.yaml", project)
    use_profile(str(comparison.SETTINGS))
    assert read_yaml(project / "params.yaml")["unlearn"]["methods"]["mmunlearner"]["learning_rate"] == 2e-5


def test_the_page_has_every_pair_and_marks_what_is_missing(project):
    params = parameters()
    finished = [write(project, seed, fold) for seed in (0, 1) for fold in (0, 1)]
    comparison.run(params, plan_of(params), finished[:3], {"seed 1, fold 1": "killed"})
    results = json.loads(comparison.SETTINGS.with_name("results.json").read_text())
    assert {(pair["first"], pair["second"], pair["verdict"]) for pair in results["pairs"]} == {
        ("mmunlearner", CONTROL, "gap")
    }
    assert "seed 1, fold 1" in " ".join(results["gaps"])
    assert "killed" in comparison.PAGE.read_text()
    comparison.run(params, plan_of(params), finished, {})
    results = json.loads(comparison.SETTINGS.with_name("results.json").read_text())
    assert "gap" not in {pair["verdict"] for pair in results["pairs"]}


def test_a_missing_score_table_is_named(project):
    cell = write(project, 0, 0)
    (cell.folder / "scores" / f"{CONTROL}.parquet").unlink()
    with pytest.raises(ArtifactError) as error:
        study_cells([cell])
    assert f"{CONTROL}.parquet" in str(error.value)
