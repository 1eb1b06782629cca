"""Gates decide; what passes is registered and certified whole, and what does not changes nothing."""

import json
import os

import pytest

from tasks.requests import certificates, finishing, promotion
from tasks.requests.intake import RequestError
from tasks.requests.planning import RUNS
from tasks.requests.registry import CANDIDATE, PRODUCTION, Registry, RegistryError
from tasks.requests.state import read_outcomes
from tasks.runtime.artifacts import read_json
from tasks.runtime.salt import SALT, SALT_VARIABLE
from tests.made_requests import PEOPLE, params_with


def test_a_good_model_becomes_the_candidate_and_its_requests_are_certified(office):
    office.ask("A", PEOPLE[1], PEOPLE[2])
    plan = office.made()
    verdict = office.carry_out(plan)
    assert verdict.failures == [] and [gate.name for gate in verdict.gates] == [
        "forget",
        "retain",
        "utility",
    ]
    number = office.finish(plan, verdict)
    assert office.registry.pointed(CANDIDATE) == number == 2 and office.registry.pointed(PRODUCTION) == 1
    version = office.registry.versions()[2]
    assert version.requests == ("A",) and version.start == 1 and version.run == plan.run
    outcome = read_outcomes(office.root)["A"]
    certificate = certificates.certificate_of(office.root, "A")
    assert (outcome.status, outcome.version, outcome.certificate) == ("candidate", 2, certificate["digest"])
    assert certificate["models"]["before"]["digest"] == plan.start.digest
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
    with office.registry._client() as client:
        found = client.get_model_version(office.registry.name, "2")
        run = client.get_run(found.run_id)
    assert found.description == "Version 1 made to forget 2 people more (A), with mmunlearner."
    assert run.info.status == "FINISHED" and run.data.metrics["gate/forget/A"] <= 0.35
    assert run.data.params["unlearn.learning_rate"] == "0.0001"


def test_a_registered_version_comes_back_byte_for_byte(office):
    office.forget("A", PEOPLE[1])
    version = office.registry.versions()[2]
    folder = office.registry.fetch(version, office.root.parent / "elsewhere")
    assert certificates.digest(folder) == version.digest


def test_a_model_that_fails_a_gate_is_never_registered(office):
    office.ask("A", PEOPLE[1])
    plan = office.made()
    verdict = office.carry_out(plan, knows="bad")
    assert len(verdict.failures) == 2
    assert verdict.failures[0].startswith("forget of A 0.") and "at most 0.35" in verdict.failures[0]
    assert verdict.failures[1].startswith("retain 0.") and "at least 0.9" in verdict.failures[1]
    finishing.refuse(plan, verdict, office.root)
    outcome = read_outcomes(office.root)["A"]
    assert outcome.status == "needs-attention" and outcome.reasons == verdict.failures
    assert list(office.registry.versions()) == [1] and office.registry.pointed(CANDIDATE) is None
    assert certificates.read_certificates(office.root) == []
    assert read_json(office.root.parent / RUNS / plan.run / "gates.json")["gates"][0]["passed"] is False


def test_earlier_requests_are_asked_about_again_and_can_stop_a_later_one(office):
    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.ask("B", PEOPLE[5])
    plan = office.made()
    verdict = office.carry_out(plan, knows="bad")
    assert [gate.about for gate in verdict.gates if gate.name == "forget"] == ["A", "B"]
    assert verdict.failures[0].startswith("forget of A ")
    finishing.refuse(plan, verdict, office.root)
    assert office.registry.pointed(PRODUCTION) == 2 and read_outcomes(office.root)["A"].status == "done"


@pytest.mark.parametrize("cut", ["alias", "certificates", "outcomes"])
def test_a_run_cut_short_at_the_end_is_finished_by_the_next_command(office, monkeypatch, cut):
    """Nothing is half there for good, wherever it stopped."""
    office.ask("A", PEOPLE[1])
    office.ask("B", PEOPLE[2])
    plan = office.made()
    verdict = office.carry_out(plan)
    place, name = {
        "alias": (Registry, "point"),
        "certificates": (finishing, "write_certificate"),
        "outcomes": (finishing, "write_outcome"),
    }[cut]

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            office.finish(plan, verdict)
    assert read_outcomes(office.root) == {}
    assert finishing.settle(office.root, office.registry) == [plan.run]
    assert finishing.settle(office.root, office.registry) == []
    assert {name: each.status for name, each in read_outcomes(office.root).items()} == {
        "A": "candidate",
        "B": "candidate",
    }
    assert office.registry.pointed(CANDIDATE) == 2 and len(office.registry.versions()) == 2
    assert certificates.verify(office.root).faults == []


def test_mlflow_gone_at_the_end_registers_nothing_half_and_the_next_run_goes_on(office, monkeypatch):
    office.ask("A", PEOPLE[1])
    plan = office.made()
    verdict = office.carry_out(plan)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(RegistryError, match="does not answer"):
            office.finish(plan, verdict)
    assert read_outcomes(office.root) == {} and list(office.registry.versions()) == [1]
    assert office.made() == plan
    assert office.finish(plan, verdict) == 2


def test_the_candidate_goes_into_production_and_back(office):
    with pytest.raises(RequestError, match="no candidate waits"):
        promotion.promote(office.root, office.registry)
    office.forget("A", PEOPLE[1])
    assert promotion.promote(office.root, office.registry) == (2, ["A"])
    assert read_outcomes(office.root)["A"].status == "done" and office.registry.pointed(CANDIDATE) is None
    office.forget("B", PEOPLE[2])
    assert promotion.rollback(office.root, office.registry, "complaints") == (2, 1, ["A"])
    outcomes = read_outcomes(office.root)
    assert outcomes["A"].reasons == ["rolled back from version 2 to 1: complaints"]
    assert "B" not in outcomes and office.registry.pointed(CANDIDATE) is None
    with pytest.raises(RequestError, match="version 1 is the vanilla model"):
        promotion.rollback(office.root, office.registry, "again")
    promotion.retry(office.root, "A")
    with pytest.raises(RequestError, match="expected one that needs attention"):
        promotion.retry(office.root, "A")
    assert list(office.made().batch) == ["A", "B"]


def test_a_candidate_made_from_another_version_is_not_promoted(office):
    office.forget("A", PEOPLE[1])
    promotion.promote(office.root, office.registry)
    office.forget("B", PEOPLE[2])
    office.registry.point(PRODUCTION, 1)
    with pytest.raises(RequestError, match="candidate 3 was made from version 2, and version 1 is in"):
        promotion.promote(office.root, office.registry)


def test_certificates_form_one_chain_over_runs(office):
    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.ask("B", PEOPLE[2])
    office.ask("C", PEOPLE[3])
    plan = office.made()
    office.finish(plan, office.carry_out(plan))
    chain = certificates.read_certificates(office.root)
    assert [each["request"]["id"] for each in chain] == ["A", "B", "C"]
    assert [each["previous"] and each["previous"]["digest"] for each in chain] == [
        None,
        chain[0]["digest"],
        chain[1]["digest"],
    ]
    found = certificates.verify(office.root)
    assert found.faults == [] and found.certificates == 3 and found.digests == 3 * 6 + 3


def test_a_changed_or_missing_file_is_found(office):
    office.forget("A", PEOPLE[1])
    run = office.root.parent / certificates.certificate_of(office.root, "A")["run"]
    for file, role in (
        ("masks/saliency.safetensors", "mask"),
        ("models/unlearned/mmunlearner/weights.bin", "model after"),
        ("models/vanilla/weights.bin", "model before"),
        ("prepared/samples.parquet", "samples"),
        ("scores/mmunlearner.parquet", "scores after"),
    ):
        path = run / "data" / file
        content = path.read_bytes()
        path.unlink()
        (fault,) = certificates.verify(office.root).faults
        assert fault.startswith(f"certificate A: {role} "), "a file is missing, or a model's folder changed"
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (fault,) = certificates.verify(office.root).faults
        assert fault.startswith(f"certificate A: {role} was changed")
        path.write_bytes(content)
    assert certificates.verify(office.root).faults == []


def test_a_changed_certificate_page_request_state_or_salt_is_found(office):
    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.forget("B", PEOPLE[2])
    folder = certificates.folder_of(office.root)

    def faults_with(path, old, new):
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))
        found = "\n".join(certificates.verify(office.root).faults)
        path.write_text(content)
        assert certificates.verify(office.root).faults == []
        return found

    first = folder / "0001-A.json"
    assert "certificate A: its content is not what its digest says" in faults_with(
        first, '"reason": "they asked"', '"reason": "nobody asked"'
    )
    page = folder / "0001-A.html"
    assert "not what the JSON says" in faults_with(page, "they asked", "nobody asked")
    request = office.root / "requests" / "A.yaml"
    assert "request was changed" in faults_with(request, "case 7", "case 8")
    state = office.root / "requests" / "state" / "A.json"
    assert "the hashes of its people are not those" in faults_with(state, PEOPLE[1], PEOPLE[4])
    salt = office.root.parent / SALT
    assert (os.stat(salt).st_mode & 0o777) == 0o600
    assert "the salt is another" in faults_with(salt, salt.read_text()[:8], "00000000")
    first.rename(folder.parent / "kept.json")
    found = "\n".join(certificates.verify(office.root).faults)
    assert "certificate B is number 2, expected 1" in found and "request A: its certificate" in found


def test_a_certificate_made_up_anew_breaks_the_chain(office):
    from efface.certificates.seal import digest_of

    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.forget("B", PEOPLE[2])
    path = certificates.folder_of(office.root) / "0001-A.json"
    forged = read_json(path)
    forged["request"]["due"] = "2030-01-01"
    forged["digest"] = digest_of(forged)
    certificates.write_certificate(office.root, forged)
    found = "\n".join(certificates.verify(office.root).faults)
    assert "certificate B follows A" in found and "the chain is broken there" in found


def test_without_the_salt_the_rest_is_checked_and_a_note_says_so(office):
    office.forget("A", PEOPLE[1])
    (office.root.parent / SALT).unlink()
    found = certificates.verify(office.root)
    assert found.faults == [] and "hashes were not checked" in found.notes[0]


def test_the_salt_can_come_from_the_environment(office, monkeypatch):
    monkeypatch.setenv(SALT_VARIABLE, "x" * 40)
    office.forget("A", PEOPLE[1])
    assert not (office.root.parent / SALT).exists()
    assert certificates.verify(office.root).faults == []
    monkeypatch.setenv(SALT_VARIABLE, "short")
    assert "expected at least 32" in certificates.verify(office.root).faults[0]


def test_a_certificate_out_of_shape_is_a_fault_and_no_crash(office):
    office.forget("A", PEOPLE[1])
    path = certificates.folder_of(office.root) / "0001-A.json"
    whole = read_json(path)
    for changes in ({"request": "A"}, {"files": {"mask": 1}}, {"scores": None}, {"number": "one"}):
        path.write_text(json.dumps(whole | changes))
        assert certificates.verify(office.root).faults
