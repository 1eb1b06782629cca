"""The flow's chain is dvc.yaml's graph, and its table says what happened."""

import shutil
from pathlib import Path

import pytest

from flows import pipeline as module
from flows.summary import Row, closing_line, markdown
from tasks.config import load_params

PROJECT = Path(__file__).resolve().parents[2]


class Recorder:
    """Stands in for Stages: notes each stage with the stages it is given."""

    def __init__(self, workers, target):
        self.calls: dict[str, set[str]] = {}
        self.verdict = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, stage, *upstream):
        assert stage not in self.calls
        self.calls[stage] = {name for name in upstream if name is not None}
        return stage


@pytest.fixture
def chain(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(module, "Stages", Recorder)
    return module.pipeline.fn().calls


@pytest.fixture
def graph(monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(PROJECT)
    with Repo(".") as repo:
        g = repo.index.graph
        return {stage.addressing: {up.addressing for up in g.successors(stage)} for stage in g}


def test_the_chain_has_every_stage_and_passes_what_dvc_says_each_reads(chain, graph):
    assert chain.keys() == graph.keys()
    assert {stage: graph[stage] - given for stage, given in chain.items() if graph[stage] - given} == {}


def test_a_stage_is_given_nothing_it_does_not_read(chain, graph):
    assert {stage: given - graph[stage] for stage, given in chain.items() if given - graph[stage]} == {}


def test_attacks_that_are_listed_are_stages_the_report_waits_for(tmp_path, monkeypatch):
    from dvc.repo import Repo

    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(PROJECT / name, tmp_path / name)
    text = (tmp_path / "params.yaml").read_text()
    old, new = "  models: {}  ", "  models: {vanilla: vanilla, retrained: retrained, npo: unlearned/npo}  "
    assert text.count(old) == 1
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "Stages", Recorder)
    calls = module.pipeline.fn().calls
    with Repo.init(".", no_scm=True) as repo:
        found = repo.index.graph
        graph = {stage.addressing: {up.addressing for up in found.successors(stage)} for stage in found}
    attacks = {"attack@vanilla", "attack@retrained", "attack@npo"}
    assert attacks <= calls.keys() == graph.keys()
    assert attacks <= calls["report"] == graph["report"]
    assert calls["attack@npo"] == graph["attack@npo"] == {"prepare", "vanilla", "unlearn@npo"}


def test_only_masked_methods_wait_for_the_mask(chain):
    for name, method in load_params(PROJECT / "params.yaml").unlearn.methods.items():
        assert ("saliency" in chain[f"unlearn@{name}"]) is (method.mask == "saliency")


def test_the_flow_is_short_enough_to_read():
    import inspect

    assert len(inspect.getsource(module.pipeline.fn).splitlines()) <= 45


def test_the_table_counts_outcomes_and_names_the_report():
    rows = [Row("prepare", "cached"), Row("vanilla", "ran", 12.34), Row("report", "ran", 1.0)]
    assert closing_line(rows).startswith("3 stages: 1 cached, 2 ran. Report: ")
    assert "| vanilla | ran | 12.3 |" in markdown(rows, closing_line(rows))
    assert "Report" not in closing_line(rows[:2])
    assert "Report" not in closing_line([Row("report", "failed", 1.0)])
