"""The cells of a study, and each as a DVC project of its own."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.workspaces import Cell, StudyError, cells_of, first_round, prepare
from tasks.config import ParamsError, load_params

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path):
    for name in ("efface", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("one = 1\n")
    for name in ("dvc.yaml", ".dvcignore", "data/masks/none.safetensors", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, tmp_path / name)
    with (tmp_path / ".dvc" / "config").open("a") as file:
        file.write("    no_scm = true\n")
    return tmp_path


def params(project, **study):
    yaml = YAML()
    document = yaml.load((project / "params.yaml").read_text())
    document["study"].update(study)
    yaml.dump(document, project / "params.yaml")
    return load_params(project / "params.yaml")


def written(cell, loaded, project):
    return load_params(prepare(cell, loaded, project) / "params.yaml")


def test_cells_are_every_combination_and_each_world_comes_before_its_methods(project):
    grid = {"npo": {"epochs": [1, 2], "learning_rate": [1e-5, 2e-5]}}
    loaded = params(project, seeds=[3, 4], fractions=[0.05, 0.1], methods=["npo", "manu"], grid=grid)
    cells = cells_of(loaded)
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * (1 + 4 + 1)
    assert len({cell.folder for cell in cells}) == len(cells)
    for i, cell in enumerate(cells):
        assert cell.world in cells[: i + 1]
    assert "seed 3, forget 0.05: npo, epochs 2, learning_rate 1e-05" in [cell.name for cell in cells]


def test_settings_are_tried_on_the_first_seeds_only(project):
    grid = {"npo": {"learning_rate": [1e-5, 2e-5]}}
    loaded = params(project, seeds=[3, 4], methods=["npo", "manu"], grid=grid, tuning_seeds=1)
    cells = cells_of(loaded)
    later = [cell.name for cell in cells if cell not in first_round(cells, loaded)]
    assert later == [f"seed 4, forget 0.1: npo, learning_rate {rate}" for rate in (1e-05, 2e-05)]
    loaded = params(project, tuning_seeds=None)
    assert first_round(cells, loaded) == cells


def test_a_method_of_studies_only_is_one_of_its_cell(project):
    loaded = params(project)
    assert "kl_min" in loaded.study.extra and "kl_min" not in loaded.unlearn.methods
    found = written(Cell(0, 0.15, "kl_min", {"learning_rate": 1e-5}), loaded, project)
    assert found.unlearn.methods["kl_min"].learning_rate == 1e-5
    assert found.evaluate.models["kl_min"] == "unlearned/kl_min"
    assert "rmu" in found.study.extra
    with pytest.raises(ParamsError, match="study.extra.npo is under unlearn.methods too"):
        params(project, extra={"npo": loaded.unlearn.methods["npo"].model_dump(mode="json")})


def test_an_extra_method_is_checked_like_any_other(project):
    method = load_params(PROJECT / "params.yaml").study.extra["rmu"].model_dump(mode="json")
    with pytest.raises(ParamsError, match=r"study: extra\.rmu\.|study\.extra\.rmu"):
        params(project, extra={"rmu": {**method, "settings": {}}})


def test_a_cell_is_the_project_with_its_own_seed_and_settings(project):
    loaded = params(project)
    cell = Cell(7, 0.15, "npo", {"learning_rate": 1e-5})
    found = written(cell, loaded, project)
    assert (found.seed, found.avatars.seed, found.prepare.forget_fraction) == (7, 7, 0.15)
    assert found.unlearn.methods["npo"].learning_rate == 1e-5
    assert found.unlearn.methods["grad_diff"] == loaded.unlearn.methods["grad_diff"]
    assert (project / cell.folder / "efface" / "code.py").read_text() == "one = 1\n"
    (project / "efface" / "code.py").write_text("one = 2\n")
    (project / "efface" / "gone.py").touch()
    prepare(cell, loaded, project)
    (project / "efface" / "gone.py").unlink()
    prepare(cell, loaded, project)
    assert sorted(p.name for p in (project / cell.folder / "efface").iterdir()) == ["code.py"]
    assert (project / cell.folder / "efface" / "code.py").read_text() == "one = 2\n"


def test_a_cell_overrides_what_the_profile_overrides(project):
    document = (project / "params.yaml").read_text().replace("profile: laptop", "profile: quick")
    (project / "params.yaml").write_text(document)
    assert "prepare: {forget_fraction: 0.1}" in document
    assert written(Cell(0, 0.05), params(project), project).prepare.forget_fraction == 0.05


def test_what_was_made_before_stays(project):
    loaded = params(project)
    made = prepare(Cell(0, 0.1), loaded, project) / "data" / "scores" / "base.parquet"
    made.parent.mkdir()
    made.write_text("scores")
    prepare(Cell(0, 0.1), loaded, project)
    assert made.read_text() == "scores"


def test_all_cells_share_the_cache_of_the_project(project):
    from dvc.repo import Repo

    folder = prepare(Cell(0, 0.1), params(project), project)
    with Repo(str(folder)) as cell, Repo(str(project)) as main:
        assert cell.cache.local.path == main.cache.local.path
        assert cell.stage_cache.cache_dir == main.stage_cache.cache_dir


def test_dvc_reads_the_parameters_of_a_cell_of_every_profile(project):
    from dvc.repo import Repo

    text = (project / "params.yaml").read_text()
    for profile in ("quick", "mllmu-llava-1.5-7b", "clear-qwen2-vl-7b"):
        edited = text.replace("profile: laptop", f"profile: {profile}")
        (project / "params.yaml").write_text(edited)
        loaded = params(project) if profile == "quick" else load_params(project / "params.yaml")
        folder = prepare(Cell(3, 0.05, "npo", {"learning_rate": 3e-5}), loaded, project)
        with Repo(str(folder)) as cell:
            assert cell.params.show()[""]["data"]["params.yaml"]["data"]["seed"] == 3
        found = load_params(folder / "params.yaml")
        assert found.unlearn.methods["npo"].learning_rate == 3e-5
        assert found.prepare.forget_fraction == 0.05 and found.avatars.profile == profile


def test_an_unknown_setting_is_named(project):
    with pytest.raises(StudyError, match=r"unlearn.methods.npo has no 'speed' in params.yaml"):
        prepare(Cell(0, 0.1, "npo", {"speed": 3}), params(project), project)


def test_a_value_that_is_not_allowed_is_named_before_anything_runs(project):
    with pytest.raises(ParamsError, match="learning_rate"):
        prepare(Cell(0, 0.1, "npo", {"learning_rate": -1.0}), params(project), project)


def test_a_study_of_an_unknown_method_is_refused(project):
    with pytest.raises(ParamsError, match="study.methods names nothing_such"):
        params(project, methods=["nothing_such"])
