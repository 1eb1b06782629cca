"""One registered model per base model, and one version per set of weights."""

import shutil

import pytest

from tasks.runtime.artifacts import digest
from tasks.tracking.client import TrackingError, mlflow_client
from tasks.tracking.registry import ModelPayload, Registry, alias_of, registered_name
from tasks.tracking.runs import run
from tests.study_results import params_for

MODEL = "efface-avatars-sandbox"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sandbox", "efface-avatars-sandbox"),
        ("llava-hf/llava-1.5-7b-hf", "efface-avatars-llava-1.5-7b-hf"),
        ("/models/my base/", "efface-avatars-my-base"),
    ],
)
def test_the_name_of_a_registered_model_is_one_that_mlflow_allows(source, name):
    assert registered_name("avatars", source) == name


def test_names_that_mlflow_reserves_are_not_used_as_aliases():
    assert [alias_of(name) for name in ("npo", "a.b c", "latest", "v2")] == [
        "npo",
        "a-b-c",
        "model-latest",
        "model-v2",
    ]


@pytest.fixture(scope="module")
def sent_root(result_template, tmp_path_factory):
    """A result that is in MLflow."""
    project = tmp_path_factory.mktemp("sent")
    shutil.copy(result_template.parent / "mlflow.db", project)
    root = shutil.copytree(result_template, project / "data")
    run(params_for(), root)
    return root


def test_an_alias_set_by_hand_survives_tracking(sent_root):
    registry = Registry(sent_root.parent, MODEL)
    assert "production" not in registry.aliases()
    assert Registry(sent_root.parent, "no-such-model").aliases() == {}
    assert registry.set_alias("production", 2)
    assert not registry.set_alias("production", 2)
    run(params_for(), sent_root)
    assert registry.aliases()["production"] == 2
    registry.delete_alias("production")
    registry.delete_alias("production")
    assert "production" not in registry.aliases()


def test_the_same_weights_stay_one_version_and_get_missing_tags(sent_root):
    registry, folder = Registry(sent_root.parent, MODEL), sent_root / "models" / "vanilla"
    with mlflow_client(sent_root.parent) as client:
        (experiment,) = client.search_experiments(filter_string="name = 'efface-avatars'")
        run_id = client.search_runs([experiment.experiment_id])[0].info.run_id
    tags = {"efface.run": "", "efface.model": "another"}
    version, new = registry.register(run_id, ModelPayload(MODEL, folder, digest(folder), tags=tags))
    assert (version.number, version.run, new) == (2, "", False)
    with mlflow_client(sent_root.parent) as client:
        assert client.get_model_version(MODEL, "2").tags["efface.model"] == "vanilla"
    assert registry.versions()[2] == version and version.digest == digest(folder)
    assert list(registry.lineage(2)) == [2]
    with pytest.raises(TrackingError) as error:
        registry.lineage(4)
    assert f"version 4 of {MODEL}" in str(error.value) and "efface.run" in str(error.value)


def test_the_same_weights_of_another_run_of_requests_are_a_new_version(sent_root):
    registry, folder = Registry(sent_root.parent, MODEL), sent_root / "models" / "unlearned" / "manu"
    with mlflow_client(sent_root.parent) as client:
        run_id = client.create_run("0").info.run_id
    numbers = [
        registry.register(run_id, ModelPayload(MODEL, folder, digest(folder), tags={"efface.run": name}))[
            0
        ].number
        for name in ("first", "second", "first")
    ]
    assert numbers == [5, 6, 5]
