"""Gates decide: a model that passes is registered and certified, one that fails changes nothing."""

import json
import shutil
import subprocess

import pandas as pd
import pytest

from efface.errors import ArtifactError
from tasks.requests import finish, plan, promotion
from tasks.requests.certificates import certificate_of, certificate_path, read_certificates, verify
from tasks.requests.intake import read_requests
from tasks.requests.state import CANDIDATE, PRODUCTION, RUNS, read_states
from tasks.runtime.artifacts import digest, read_json, write_json
from tasks.tracking.client import TrackingError, mlflow_client
from tasks.tracking.registry import Registry
from tests.requests_project import PEOPLE, params_with, write_run


def test_a_good_model_becomes_the_candidate_and_its_requests_are_certified(project):
    project.add("A", PEOPLE[1], PEOPLE[2])
    run = project.plan()
    verdict = project.judge(run)
    assert verdict.failures == [] and [gate.name for gate in verdict.gates] == [
        "forget",
        "retain",
        "utility",
        "knowledge",
        "neighbours",
    ]
    number = project.accept(run, verdict)
    assert project.registry.aliases() == {CANDIDATE: 2, PRODUCTION: 1} and number == 2
    version = project.registry.versions()[2]
    assert version.requests == ("A",) and version.parent == 1 and version.run == run.run
    state, certificate = read_states(project.root)["A"], certificate_of(project.root, "A")
    assert (state.status, state.version, state.certificate) == ("candidate", 2, certificate["digest"])
    assert (state.registered_model, state.model_digest) == (project.registry.name, version.digest)
    assert certificate["models"]["registered_name"] == project.registry.name
    assert certificate["models"]["before"]["digest"] == run.start.digest
    assert certificate["models"]["after"] == {"version": 2, "digest": version.digest}
    assert set(certificate["files"]) == {
        "samples",
        "model before",
        "model after",
        "scores after",
        "mask",
        "request",
    }
    scores = certificate["scores"]["requests"]["A"]
    assert scores["original"]["seen"] > 0.9 > 0.35 > scores["after"]["seen"]
    assert not any(person in json.dumps(certificate) for person in PEOPLE)
    with mlflow_client(project.root.parent) as client:
        row = client.get_model_version(project.registry.name, "2")
        mlflow_run = client.get_run(row.run_id)
    assert row.description == "Version 1 made to forget 2 more people (A), with mmunlearner."
    assert mlflow_run.info.status == "FINISHED" and mlflow_run.data.metrics["gate/forget/A"] <= 0.35
    assert mlflow_run.data.params["unlearn.learning_rate"] == "0.0001"


def test_a_request_for_some_facts_is_certified_with_what_is_left_of_the_others(project):
    project.add("A", PEOPLE[1], attributes=["pet"])
    run = project.plan()
    verdict = project.judge(run)
    gates = {gate.name: gate for gate in verdict.gates if gate.about == "A"}
    assert gates["other_facts"].passed and gates["other_facts"].value > 0.9 > 0.35 > gates["forget"].value
    project.accept(run, verdict)
    certificate = certificate_of(project.root, "A")
    assert certificate["request"]["attributes"] == ["pet"]
    assert "pet; their other facts are kept" in certificate_path(project.root, certificate).with_suffix(
        ".html"
    ).read_text(encoding="utf-8")
    assert verify(project.root, project.registry).faults == []


def test_a_method_under_a_name_of_its_own_is_certified_with_the_digest_of_its_file(project):
    methods = {"ours": project.params.unlearn.methods["mmunlearner"]}
    unlearn = project.params.unlearn.model_copy(update={"methods": methods})
    requests = project.params.requests.model_copy(update={"method": "ours"})
    project.params = project.params.model_copy(update={"unlearn": unlearn, "requests": requests})
    project.add("A", PEOPLE[1])
    run = project.plan()
    plan.link_models(run, project.params, project.root)
    write_run(project.root.parent / RUNS / run.run, run, "good", method="ours")
    project.accept(run, finish.judge(run, project.params, project.root))
    certificate = certificate_of(project.root, "A")
    file = project.root.parent / RUNS / run.run / "efface" / "unlearning" / "methods" / "mmunlearner.py"
    assert certificate["method"]["name"] == "ours" and certificate["method"]["digest"] == digest(file)


def test_the_flow_run_that_resumes_a_registration_decides_on_the_candidate(project):
    project.add("A", PEOPLE[1])
    run = project.plan()
    verdict = project.judge(run)
    requests, _ = read_requests(project.root)
    for flow_run in ("killed", "resumed"):
        common = (run, verdict, project.params, project.root, project.registry, requests)
        version = finish.accept(*common, flow_run=flow_run)
        assert (version.number, version.flow_run) == (2, flow_run)


def test_losing_the_other_facts_fails_a_gate(project):
    project.add("A", PEOPLE[1], attributes=["pet"])
    verdict = project.judge(project.plan(), quality="bad")
    assert "other_facts" in [gate.name for gate in verdict.gates if not gate.passed]


@pytest.mark.parametrize(("answers", "passed"), [("mmunlearner", True), ("vanilla", False)])
def test_a_model_that_is_served_in_four_bits_must_have_forgotten_so(project, answers, passed):
    project.params = params_with(served_bits=4)
    project.add("A", PEOPLE[1])
    run = project.plan()
    overrides = plan.param_overrides(run, project.params)
    assert overrides["attack.run"] == ["quantize"] and overrides["attack.quantize"] == {"bits": [4]}
    assert plan.stage_targets(run, project.params)["attack"] == ["attack@mmunlearner"]
    with pytest.raises(ArtifactError):
        project.judge(run)
    folder = project.root.parent / RUNS / run.run / "data"
    table = pd.read_parquet(folder / "scores" / f"{answers}.parquet")
    (folder / "attacks").mkdir()
    table.assign(attack="quantize", variant="4 bits").to_parquet(folder / "attacks" / "mmunlearner.parquet")
    cell = {"forget": {"multimodal": {"exact_match": {"value": 0.25}}}}
    results = [{"attack": "quantize", "variant": "4 bits", "metrics": cell}]
    write_json(folder / "attacks" / "mmunlearner.json", {"results": results})
    verdict = finish.judge(run, project.params, project.root)
    (gate,) = [gate for gate in verdict.gates if gate.name == "served"]
    assert gate.passed is passed and gate.about == "A"
    assert verdict.attacks == {"quantize": {"exact_match": {"4 bits": {"after": 0.25}}}}


def test_a_registered_version_is_downloaded_byte_for_byte(project):
    project.forget("A", PEOPLE[1])
    version = project.registry.versions()[2]
    folder = project.registry.download(version.number, project.root.parent / "download")
    assert digest(folder) == version.digest


def test_a_model_that_fails_a_gate_is_not_registered(project):
    project.add("A", PEOPLE[1])
    run = project.plan()
    verdict = project.judge(run, quality="bad")
    failed = [gate.name for gate in verdict.gates if not gate.passed]
    assert failed == ["forget", "retain", "knowledge", "neighbours"]
    assert "forget of A 0." in verdict.failures[0] and "0.35" in verdict.failures[0]
    finish.reject(run, verdict, project.root)
    state = read_states(project.root)["A"]
    assert state.status == "needs-attention" and state.reasons == verdict.failures
    assert list(project.registry.versions()) == [1] and CANDIDATE not in project.registry.aliases()
    assert read_certificates(project.root) == []
    assert read_json(project.root.parent / RUNS / run.run / "gates.json")["gates"][0]["passed"] is False


def test_earlier_requests_are_evaluated_again_and_can_fail_a_gate(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.add("B", PEOPLE[5])
    run = project.plan()
    verdict = project.judge(run, quality="bad")
    assert [gate.about for gate in verdict.gates if gate.name == "forget"] == ["A", "B"]
    assert verdict.failures[0].startswith("forget of A ")
    finish.reject(run, verdict, project.root)
    assert project.registry.aliases()[PRODUCTION] == 2
    assert read_states(project.root)["A"].status == "done"


@pytest.mark.parametrize(
    ("place", "name"),
    [(Registry, "set_alias"), (promotion, "write_certificate"), (promotion, "write_state")],
)
def test_an_interrupted_certification_is_completed_by_the_next_command(project, monkeypatch, place, name):
    project.add("A", PEOPLE[1])
    project.add("B", PEOPLE[2])
    run = project.plan()
    verdict = project.judge(run)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            project.accept(run, verdict)
    assert read_states(project.root) == {}
    assert promotion.resume(project.root)["result"] == {"version": 2}
    assert promotion.resume(project.root) is None
    statuses = {name: state.status for name, state in read_states(project.root).items()}
    assert statuses == {"A": "candidate", "B": "candidate"}
    assert project.registry.aliases()[CANDIDATE] == 2 and len(project.registry.versions()) == 2
    assert verify(project.root, project.registry).faults == []


def test_without_mlflow_at_the_end_nothing_is_registered_and_the_next_run_resumes(project, monkeypatch):
    project.add("A", PEOPLE[1])
    run = project.plan()
    verdict = project.judge(run)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(TrackingError):
            project.accept(run, verdict)
    assert read_states(project.root) == {} and list(project.registry.versions()) == [1]
    assert project.plan() == run
    assert project.accept(run, verdict) == 2


def test_uncommitted_files_are_those_that_make_a_model(project):
    folder = project.root.parent
    assert finish.uncommitted_files(folder) is None
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "dvc.lock").write_text("stages: {}\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".gitignore").write_text("mlflow.db\n")
    assert finish.uncommitted_files(folder) == [".gitignore", "params.yaml"]


def test_people_whom_the_model_does_not_know_need_attention_unless_confirmed(project):
    project.add("A", PEOPLE[1])
    project.add("B", PEOPLE[2])
    run = project.plan()
    project.judge(run)
    assert finish.unknown_requests(run, project.params, project.root) == []
    known = read_states(project.root)["A"].known
    assert known["knowledge"] > 0.5 > known["floor"]
    scores = project.root.parent / RUNS / run.run / "data" / "scores"
    shutil.copy(scores / "base.parquet", scores / "vanilla.parquet")
    promotion.confirm(project.root, "B", "they insist")
    assert finish.unknown_requests(run, project.params, project.root) == ["A"]
    states = read_states(project.root)
    assert states["A"].status == "needs-attention" and "confirm A" in states["A"].reasons[0]
    assert list(project.plan().batch) == ["B"]
    promotion.confirm(project.root, "A", "they insist too")
    assert sorted(project.plan().batch) == ["A", "B"]


def test_a_confirmed_request_has_no_gate_on_its_neighbours_also_after_a_failure(project):
    project.add("A", PEOPLE[1])
    promotion.confirm(project.root, "A", "they insist")
    for _ in range(2):
        run = project.plan()
        verdict = project.judge(run, quality="bad")
        assert "neighbours" not in [gate.name for gate in verdict.gates]
        finish.reject(run, verdict, project.root)
        promotion.retry(project.root, "A")


def test_the_annex_has_every_class_once_and_says_what_was_not_run(project):
    project.forget("A", PEOPLE[1])
    certificate = certificate_of(project.root, "A")
    status = {row["class"]: row["status"] for row in certificate["annex"]}
    assert status == {
        "attribute inference": "executed",
        "membership inference": "not run",
        "regurgitation of training data": "executed",
        "exfiltration": "out of scope",
        "model inversion": "not run",
        "reconstruction": "not run",
    }
    assert certificate["format"] == 2 and len(certificate["method"]["digest"]) == 64
    assert any("by picture" in line for line in certificate["limits"]) and certificate["not_retested"] == {}
