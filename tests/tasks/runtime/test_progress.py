"""What is left of a run: stages that DVC has no record of, and seconds scaled by those that are finished."""

import json
from pathlib import Path

import pytest

from tasks.config import load_params
from tasks.config.stages import STAGES
from tasks.runtime.progress import remaining

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def stages():
    """Names of all stages of the project, as DVC reads them."""
    from dvc.repo import Repo

    return sorted(stage.addressing.removeprefix("dvc.yaml:") for stage in Repo(str(PROJECT)).index.stages)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def remaining_after(finished, current):
        monkeypatch.setenv("DVC_STAGE", current)
        (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {key: {} for key in finished}}))
        return remaining(load_params(PROJECT / "params.yaml"), tmp_path / "data")

    runs = tmp_path / "data" / "runs"
    runs.mkdir(parents=True)
    record = {"stage": "base", "seconds": 2.0 * STAGES["base"].seconds}  # half as fast as the default run
    (runs / "base.json").write_text(json.dumps(record))
    return remaining_after


def test_the_rest_is_counted_and_estimated(run, stages):
    by_name = {name: stage for stage in STAGES.values() for name in stage.dvc}
    rest = [name for name in stages if name not in ("params", "benchmark", "prepare", "split", "base")]
    seconds = sum(by_name[name.partition("@")[0]].seconds for name in rest)
    text = run({"params", "benchmark", "prepare", "split"}, "base")
    assert text == f"{len(rest)} stages left, about {2 * seconds / 60:.0f} min"
    assert run(set(stages) - {"report", "base"}, "base") == "1 stage left, less than a minute"


def test_nothing_is_said_where_every_stage_has_run_or_dvc_did_not_start_it(run, stages, monkeypatch):
    assert run(stages, "base") is None
    monkeypatch.delenv("DVC_STAGE")
    assert remaining(load_params(PROJECT / "params.yaml"), Path("nowhere")) is None
