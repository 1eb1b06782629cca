"""MLflow gets each result once and complete, with the score files' numbers; a dead server loses nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from efface.errors import ArtifactError
from efface.evaluation.summary import METRICS_FILE, model_metrics
from efface.model_card import model_card
from tasks.runtime.artifacts import digest, read_json, write_json
from tasks.tracking.client import TrackingError
from tasks.tracking.runs import RECEIPT, VIEW, run
from tests.study_results import FEW, params_for, write_scores

PROJECT = Path(__file__).resolve().parents[3]
MODEL = "efface-avatars-sandbox"


def client_of(root, uri=None):
    from mlflow.tracking import MlflowClient

    uri = uri or f"sqlite:///{root.parent / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def runs_of(client, role=None):
    (experiment,) = [e for e in client.search_experiments() if e.name == "efface-avatars"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if role is None or run.data.tags["efface.role"] == role]


def by_name(client):
    return {run.info.run_name: run for run in runs_of(client) if run.data.tags["efface.role"] != "pipeline"}


def check_numbers(client, root):
    """Every number of the score files, every step of the histories, under the right names."""
    runs = by_name(client)
    assert set(runs) == set(FEW)
    for model, logged_run in runs.items():
        summary = read_json(root / "scores" / f"{model}.json")
        for set_name, modalities in summary["metrics"].items():
            for modality, metrics in modalities.items():
                for metric, cell in metrics.items():
                    assert logged_run.data.metrics[f"{set_name}/{modality}/{metric}"] == cell["value"]
        expected = model_metrics(pd.read_parquet(root / "scores" / f"{model}.parquet"))
        assert expected.items() <= logged_run.data.metrics.items()
        tags = logged_run.data.tags
        assert tags["efface.method"] == model and {"efface.seed", "efface.forget_fraction"} <= tags.keys()
    history = read_json(root / "runs" / "unlearn@mmunlearner.json")["history"]
    for key in ("forget_loss", "retain_loss", "learning_rate", "retain_grad_norm"):
        logged = client.get_metric_history(runs["mmunlearner"].info.run_id, f"training/{key}")
        assert sorted((m.step, m.value) for m in logged) == [(int(e["step"]), e[key]) for e in history]


def state(client):
    """Everything a second call could add to."""
    runs = {r.info.run_id: (r.data.to_dictionary(), r.info.status) for r in runs_of(client)}
    history = [m for r in runs for m in client.get_metric_history(r, "training/forget_loss")]
    return runs, len(history), [(v.name, v.version) for v in client.search_model_versions()]


def test_everything_of_a_result_arrives_and_a_second_call_sends_nothing(root, monkeypatch, capsys):
    monkeypatch.setenv("EFFACE_FLOW_RUN_ID", "flow-7")
    lock = {"stages": {"prepare": {"outs": [{"path": "data/prepared/samples.parquet", "md5": "ab12"}]}}}
    (root.parent / "dvc.lock").write_text(json.dumps(lock))
    run(params_for(), root)
    assert "sent 6 runs, 5 model versions, 5 aliases, 1 reports" in capsys.readouterr().out
    client = client_of(root)
    check_numbers(client, root)
    tags = client.get_experiment_by_name("efface-avatars").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    columns = json.loads(tags[f"mlflow.sharedViewState.{VIEW}"])["selectedColumns"]
    assert {f"metrics.`{key}`" for key in ("score/visual", "study/score", *METRICS_FILE)} < set(columns)
    (parent,) = runs_of(client, "pipeline")
    assert parent.data.tags["prefect.flow_run_id"] == "flow-7"
    assert parent.data.tags["dvc/data/prepared/samples.parquet"] == "ab12"
    assert parent.data.tags["dvc.lock"] == digest(root.parent / "dvc.lock")
    assert parent.data.tags["mlflow.note.content"] == "### Summary"
    assert parent.data.params["saliency.threshold"] == "1.0"
    assert parent.data.metrics["saliency/density/projector"] == 0.6
    for run_ in runs_of(client):
        assert run_.info.status == "FINISHED"
        assert run_.data.tags["git.commit"].startswith("0123456789")
        assert run_.data.tags["device"] == "cpu"
        assert {d.dataset.digest for d in run_.inputs.dataset_inputs} == {"ab12"}
    children = by_name(client)
    assert all(c.data.tags["mlflow.parentRunId"] == parent.info.run_id for c in children.values())
    assert children["mmunlearner"].data.params["unlearn.learning_rate"] == "0.0002"
    assert children["manu"].data.params["prune.fraction"] == "0.1"
    side_effects = {
        name: {k.removeprefix("side_effects/"): v for k, v in run_.data.metrics.items() if "side_eff" in k}
        for name, run_ in children.items()
    }
    assert side_effects["mmunlearner"] == {"kept/facts": 0.75, "worst": 0.5}
    assert side_effects["manu"] == {}
    robustness = {k: v for k, v in children["mmunlearner"].data.metrics.items() if k.startswith("attack/")}
    gap = "attack/worst_gap"
    assert robustness == {gap: 0.25, f"{gap}_low": 0.0, f"{gap}_high": 0.5}
    assert not [key for key in children["manu"].data.metrics if key.startswith("attack/")]
    scores = {
        name: {k: v for k, v in run_.data.metrics.items() if k.startswith("score/")}
        for name, run_ in children.items()
    }
    parts = {"forget": 0.9, "text": 1.0, "retain": 0.5, "utility": 0.75, "low": 60.0}
    assert scores["mmunlearner"] == {"score/visual": 70.5} | {f"score/visual_{k}": parts[k] for k in parts}
    assert scores["manu"] == {"score/full_exact_match": 40.0} and scores["vanilla"] == {}
    assert children["mmunlearner"].data.tags["efface.status"] == "finished"
    assert "efface.status" not in children["manu"].data.tags
    contexts = {d.dataset.name: d.tags[0].value for d in children["mmunlearner"].inputs.dataset_inputs}
    assert contexts == {
        "avatars-forget": "forget",
        "avatars-retain": "retain",
        "avatars-evaluation": "evaluation",
    }
    artifacts = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(root.parent / "mlartifacts")
    assert (artifacts / "report" / "index.html").read_text() == "<h1>Report</h1>"
    assert read_json(artifacts / "masks" / "saliency.json")["kind"] == "saliency_mask"
    scores = Path(children["manu"].info.artifact_uri.removeprefix("file://")) / "scores" / "manu.parquet"
    assert scores.read_bytes() == (root / "scores" / "manu.parquet").read_bytes()
    assert {m.name: m.aliases for m in client.search_registered_models()} == {
        MODEL: {model: version for version, model in enumerate(FEW, start=1)}
    }
    before = state(client)
    capsys.readouterr()
    run(params_for(), root)
    assert "nothing new" in capsys.readouterr().out
    assert state(client) == before


def test_a_new_result_makes_a_new_parent_and_the_old_one_back_on_disk_moves_the_alias_back(root, capsys):
    run(params_for(), root)
    copy = shutil.copytree(root, root.parent / "copy")
    folder = root / "models" / "unlearned" / "manu"
    (folder / "config.json").write_text("{}")
    table = pd.read_parquet(root / "scores" / "manu.parquet")
    write_scores(
        root, "manu", table.assign(exact_match=table["exact_match"].where(table["set"] != "real", 0.0))
    )
    run(params_for(), root)
    client = client_of(root)
    assert len(runs_of(client, "pipeline")) == 2
    assert len(runs_of(client)) == 2 * (1 + len(FEW))
    # Unchanged weights are not stored twice.
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == len(FEW) + 1
    assert client.get_model_version_by_alias(MODEL, "manu").version == len(FEW) + 1
    shutil.rmtree(root)
    copy.rename(root)
    capsys.readouterr()
    run(params_for(), root)
    assert "sent 1 aliases to" in capsys.readouterr().out
    assert len(runs_of(client, "pipeline")) == 2
    assert client.get_model_version_by_alias(MODEL, "manu").version == len(FEW)


def test_benchmarks_of_the_scored_model_are_sent_with_it_and_those_of_another_are_not(root):
    scored = read_json(root / "scores" / "manu.json")["digest"]
    for model, of_weights in (("manu", scored), ("mmunlearner", "other weights")):
        results = {"mme": {"mme_perception_score": 1500.5}}
        write_json(root / "lmms_eval" / f"{model}.json", {"digest": of_weights, "results": results})
    run(params_for(), root)
    runs = by_name(client_of(root))
    assert runs["manu"].data.metrics["lmms_eval/mme/mme_perception_score"] == 1500.5
    assert not [key for key in runs["mmunlearner"].data.metrics if key.startswith("lmms_eval")]


def test_a_new_report_on_the_same_result_replaces_the_old_page(root, capsys):
    run(params_for(), root)
    (root / "report" / "index.html").write_text("<h1>Better</h1>")
    capsys.readouterr()
    run(params_for(), root)
    assert "sent 1 reports to" in capsys.readouterr().out
    (parent,) = runs_of(client_of(root), "pipeline")
    artifacts = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "report" / "index.html").read_text() == "<h1>Better</h1>"


def test_a_later_report_corrects_the_score_of_a_complete_run(root, capsys):
    run(params_for(), root)
    scores = read_json(root / "report" / "scores.json")
    scores["models"]["mmunlearner"]["score"]["visual"]["value"] = 65.0
    scores["models"]["manu"]["score"] = {"full": scores["models"]["mmunlearner"]["score"]["visual"]}
    write_json(root / "report" / "scores.json", scores)
    capsys.readouterr()
    run(params_for(), root)
    assert "sent 2 updates, 1 reports to" in capsys.readouterr().out
    runs = by_name(client_of(root))
    assert len(runs) == len(FEW)
    assert runs["mmunlearner"].data.metrics["score/visual"] == 65.0
    assert runs["manu"].data.metrics["score/full"] == 65.0
    run(params_for(), root)
    assert "nothing new" in capsys.readouterr().out


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.tracking import client, registry, runs
from tests.study_results import params_for
from mlflow.tracking import MlflowClient

calls = []
original = getattr({where})
def killing(*args, **options):
    calls.append(1)
    if len(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
setattr({where}, killing)
runs.run(params_for(), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "after"),
    [
        ("MlflowClient, 'set_terminated'", 3),  # two models sent, the third logged but not marked complete
        ("MlflowClient, 'create_model_version'", 2),  # its files stored, but not a version yet
        ("os, 'replace'", 1),  # the database created, but not in its place
    ],
)
def test_a_killed_call_is_completed_by_the_next(root, where, after):
    code = KILLED.format(where=where, after=after)
    if where.startswith("os"):
        (root.parent / "mlflow.db").unlink()
    process = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    run(params_for(), root)
    client = client_of(root)
    check_numbers(client, root)
    runs = runs_of(client)
    assert len(runs) == 1 + len(FEW)
    assert all(r.data.tags["efface.complete"] == "true" and r.info.status == "FINISHED" for r in runs)
    assert len(client.search_model_versions()) == len(FEW)
    assert not list(root.parent.glob(".*partial*"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_unreachable_server_is_printed_or_raised(root, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    run(params_for(), root, quiet_if_unreachable=True)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "python -m tasks track" in line and "secret" not in line
    with pytest.raises(TrackingError):
        run(params_for(), root)


def test_a_result_without_its_report_says_what_to_run(root):
    shutil.rmtree(root / "report")
    with pytest.raises(ArtifactError) as error:
        run(params_for(), root)
    assert "report/index.html" in str(error.value) and "dvc repro" in str(error.value)


def test_a_model_other_than_the_scored_one_is_not_registered(root):
    (root / "models" / "unlearned" / "manu" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError) as error:
        run(params_for(), root)
    assert "models/unlearned/manu" in str(error.value) and "dvc repro" in str(error.value)


@pytest.mark.slow
def test_two_calls_at_once_on_a_fresh_database(root):
    code = "import sys; from pathlib import Path; from tasks.tracking import runs; "
    code += "from tests.study_results import params_for; runs.run(params_for(), Path(sys.argv[1]))"
    (root.parent / "mlflow.db").unlink()
    calls = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [call.communicate(timeout=100)[0] for call in calls]
    assert sorted("nothing new" in output for output in outputs) == [False, True]
    assert len(runs_of(client_of(root))) == 1 + len(FEW)


@pytest.mark.slow
def test_the_registered_model_loads_with_transformers(root):
    """The weights that come back through the registry are those that were unlearned."""
    import mlflow
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from efface import sandbox
    from efface.models import save_model

    shape = {"image_size": 24, "patch_size": 8}
    processor = sandbox.build_processor(
        sandbox.build_tokenizer(["Which pet has this person? A cat."]), **shape
    )
    sizes = {"width": 32, "mlp_width": 48, "vision_layers": 2, "language_layers": 2, "heads": 2}
    model = sandbox.build_model(processor.tokenizer, **shape, **sizes)
    folder = root / "models" / "unlearned" / "mmunlearner"
    shutil.rmtree(folder)
    save_model(model, processor, folder)
    write_scores(root, "mmunlearner", pd.read_parquet(root / "scores" / "mmunlearner.parquet"))
    run(params_for(), root)
    fetched = mlflow.artifacts.download_artifacts(
        f"models:/{MODEL}@mmunlearner", tracking_uri=f"sqlite:///{root.parent / 'mlflow.db'}"
    )
    loaded = AutoModelForImageTextToText.from_pretrained(fetched)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert AutoProcessor.from_pretrained(fetched).tokenizer.get_vocab() == processor.tokenizer.get_vocab()


@pytest.fixture
def server(tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "server-files")]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:
        until = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < until, (tmp_path / "server.log").read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_real_server_gets_the_same_and_its_death_loses_nothing(root, server, monkeypatch, capsys):
    uri, process = server
    (root.parent / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run(params_for(), root)
    client = client_of(root, uri)
    check_numbers(client, root)
    (parent,) = runs_of(client, "pipeline")
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"report", "masks"}
    assert client.get_model_version_by_alias(MODEL, "manu").version == str(len(FEW))
    before = state(client)
    capsys.readouterr()
    run(params_for(), root)
    assert "nothing new" in capsys.readouterr().out
    assert state(client) == before
    assert not (root.parent / "mlflow.db").exists()

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (root / "report" / "index.html").write_text("<h1>Later</h1>")
    run(params_for(), root, quiet_if_unreachable=True)
    assert "python -m tasks track" in capsys.readouterr().out


def test_versions_say_what_they_were_made_from(root):
    card = model_card(
        "manu", method="manu", subjects=["a"], key=None, parameters={}, provenance={}, scores="none yet"
    )
    (root / "report" / "cards").mkdir()
    (root / "report" / "cards" / "manu.md").write_text(card)
    run(params_for(), root)
    client = client_of(root)
    versions = {model: client.get_model_version_by_alias(MODEL, model) for model in FEW}
    made_from = {model: version.tags.get("efface.parent") for model, version in versions.items()}
    base, vanilla = (f"models:/{MODEL}/{versions[model].version}" for model in ("base", "vanilla"))
    assert made_from == {
        "base": None,
        "vanilla": base,
        "retrained": base,
        "mmunlearner": vanilla,
        "manu": vanilla,
    }
    assert versions["manu"].description.startswith("# manu")  # without the card's front matter
    assert "before training" in versions["base"].description.lower()
    tags = versions["manu"].tags
    assert (tags["efface.role"], tags["efface.base"], tags["efface.stored"]) == (
        "method",
        "sandbox",
        "mlflow",
    )
    assert tags["git.commit"].startswith("0123456789")
    assert tags["efface.model_digest"] == digest(root / "models" / "unlearned" / "manu")


def test_a_model_too_large_to_upload_gets_a_version_that_says_where_it_is(root, monkeypatch):
    monkeypatch.setattr("tasks.tracking.registry.LARGEST_UPLOAD", 10)
    run(params_for(), root)
    client = client_of(root)
    version = client.get_model_version_by_alias(MODEL, "vanilla")
    assert version.tags["efface.stored"] == "dvc"
    stored = Path(version.source.removeprefix("file://"))
    assert [file.name for file in stored.iterdir()] == ["stored-with-dvc.json"]
    assert read_json(stored / "stored-with-dvc.json")["digest"] == version.tags["efface.model_digest"]


def test_the_receipt_exists_only_while_the_result_is_complete(root, monkeypatch):
    run(params_for(), root)
    (parent,) = runs_of(client_of(root), "pipeline")
    receipt = read_json(root.parent / RECEIPT)
    assert receipt["run"] == parent.info.run_id
    assert receipt["at"].startswith("sqlite:")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    run(params_for(), root, quiet_if_unreachable=True)
    assert not (root.parent / RECEIPT).exists()


def test_no_secret_reaches_tags_parameters_files_or_the_log(root, monkeypatch, capsys):
    """A database address with a password, and a parameter that holds a password."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    database = root.parent / "mlflow.db"
    monkeypatch.setenv("EFFACE_REMOTE", "https://me:hush-hush@example.org/data")
    record = root / "runs" / "unlearn@mmunlearner.json"
    content = read_json(record)
    content["params"]["source"] = "https://me:hush-hush@example.org/model?token=open-sesame"
    content["git_commit"] = "open-sesame"
    record.write_text(json.dumps(content))
    (root.parent / "params.yaml").write_text("base: {source: https://me:hush-hush@example.org/model}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    run(params_for(), root)
    client = client_of(root)
    output = capsys.readouterr().out + (root.parent / RECEIPT).read_text()
    output += json.dumps([run_.data.to_dictionary() for run_ in runs_of(client)])
    output += json.dumps([version.tags for version in client.search_model_versions()])
    output += "".join(
        path.read_text() for path in (root.parent / "mlartifacts").rglob("project/*") if path.is_file()
    )
    assert "open-sesame" not in output
    assert "hush-hush" not in output
    assert by_name(client)["mmunlearner"].data.params["unlearn.source"].startswith("https://***@example.org")


def test_a_deleted_run_and_a_deleted_registered_model_are_sent_again(root, capsys):
    run(params_for(), root)
    client = client_of(root)
    client.delete_run(by_name(client)["manu"].info.run_id)
    client.delete_registered_model(MODEL)
    capsys.readouterr()
    run(params_for(), root)
    assert "sent 1 runs, 5 model versions, 5 aliases to" in capsys.readouterr().out.replace(
        "5 model versions, 5 aliases, 1 runs", "1 runs, 5 model versions, 5 aliases"
    )
    check_numbers(client, root)
    assert set(client.get_registered_model(MODEL).aliases) == set(FEW)
    (parent,) = runs_of(client, "pipeline")
    client.delete_run(parent.info.run_id)
    run(params_for(), root)
    assert len(runs_of(client, "pipeline")) == 1
