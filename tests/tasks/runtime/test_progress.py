"""What is left of a run: stages that DVC has no record of, and seconds scaled by those that are finished."""

import json

import pytest

from tasks.config import Params
from tasks.config.stages import STAGES
from tasks.runtime.progress import remaining


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "base")
    (tmp_path / "data" / "runs").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {params: {}, benchmark: {}, prepare: {}}\n")
    record = {"stage": "base", "seconds": 2.0 * STAGES["base"].seconds}  # half as fast as the default run
    (tmp_path / "data" / "runs" / "base.json").write_text(json.dumps(record))
    return tmp_path / "data"


def test_the_rest_is_counted_and_estimated(root):
    params = Params()
    methods = len(params.unlearn.methods), len(params.prune.methods)
    models = 3 + sum(methods)
    once = ["vanilla", "retrained", "saliency", "importance", "report"]
    seconds = sum(STAGES[name].seconds for name in once) + models * STAGES["evaluate"].seconds
    seconds += methods[0] * STAGES["unlearn"].seconds + methods[1] * STAGES["prune"].seconds
    count = len(once) + sum(methods) + models
    assert remaining(params, root) == f"{count} stages left, about {2 * seconds / 60:.0f} min"


def test_nothing_is_said_where_dvc_did_not_start_the_stage_or_every_stage_has_run(root, monkeypatch):
    params = Params()
    names = [*("vanilla", "retrained", "saliency", "importance", "report")]
    names += [f"unlearn@{name}" for name in params.unlearn.methods]
    names += [f"prune@{name}" for name in params.prune.methods]
    names += [params.evaluation_of(name) for name in params.models]
    lock = root.parent / "dvc.lock"
    lock.write_text(lock.read_text().rstrip("}\n") + "}, " + ", ".join(f"'{n}': {{}}" for n in names) + "}\n")
    assert remaining(params, root) is None
    lock.unlink()
    monkeypatch.delenv("DVC_STAGE")
    assert remaining(params, root) is None
