"""The chain of the flow is the graph of dvc.yaml, and the flow ends with one line per mistake."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows import pipeline as module
from tasks.config import load_params

PROJECT = Path(__file__).resolve().parents[2]


class Recorder:
    """Stands in for Stages: notes each stage with those it reads from."""

    def __init__(self, workers, target):
        self.calls: dict[str, set[str]] = {}

    def __call__(self, stage, *upstream):
        assert stage not in self.calls
        self.calls[stage] = {name for name in upstream if name is not None}
        return stage

    def finish(self):
        return self.calls


def graph(folder: Path) -> dict[str, set[str]]:
    """Stage to the stages that DVC says it reads from."""
    dot = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    edges = re.findall(r'"([^"]+)" -> "([^"]+)"', dot)
    stages = set(re.findall(r'"([^"]+)"', dot))
    return {stage: {start for start, end in edges if end == stage} for stage in stages}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The files that DVC draws its graph from, with attacks, controls and benchmarks switched on."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(PROJECT / name, folder / name)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["attack"]["models"] = ["vanilla", "retrained", "npo"]
    params["lmms_eval"]["models"] = ["npo"]
    params["saliency"]["controls"] = ["random"]
    yaml.dump(params, folder / "params.yaml")
    return folder


@pytest.fixture
def chain(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(module, "Stages", Recorder)
    return module.pipeline.fn()


def test_chain_is_the_graph_of_dvc_yaml(chain, project):
    assert chain == graph(project)


def test_only_masked_methods_read_the_mask(chain, project):
    for name, method in load_params(project / "params.yaml").unlearn.methods.items():
        assert ("saliency" in chain[f"unlearn@{name}"]) is (method.mask == "saliency")


def test_attacks_are_stages_that_the_report_reads(chain):
    attacks = {"attack@vanilla", "attack@retrained", "attack@npo"}
    assert attacks <= chain.keys() and attacks <= chain["report"]


def test_a_run_is_named_by_what_it_runs_on(tmp_path, monkeypatch):
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert module.run_name() == "avatars, base sandbox, seed 0"
    (tmp_path / "params.yaml").write_text("seed: [1]\n")
    assert module.run_name() == "pipeline"


def test_a_mistake_in_params_yaml_is_one_line(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (project / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("forget_fraction: 0.1", "forget_fraction: 15", 1))
    result = CliRunner().invoke(_app(), [])
    assert result.exit_code == 1
    assert "split.forget_fraction is 15" in result.output and "Traceback" not in result.output


def _app():
    import typer

    app = typer.Typer()
    app.command()(module.main)
    return app
