"""Verification finds every change of a certificate and of the files it names, and names a remedy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efface.certificates.seal import digest_of
from efface.certificates.signature import create_key, public_key_of
from efface.errors import ArtifactError
from tasks.requests.certificates import (
    KEY,
    KEY_VARIABLE,
    PUBLIC_KEYS,
    certificate_folder,
    certificate_of,
    public_keys,
    read_certificates,
    sign,
    signing_key,
    verify,
    write_certificate,
)
from tasks.requests.promotion import promote, rollback
from tasks.runtime.artifacts import read_json
from tasks.runtime.salt import SALT, SALT_VARIABLE
from tests.requests_project import PEOPLE, params_with


def faults_of(project):
    return verify(project.root, project.registry).faults


def test_certificates_form_one_chain_over_runs(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.add("B", PEOPLE[2])
    project.add("C", PEOPLE[3])
    run = project.plan()
    project.accept(run, project.judge(run))
    chain = read_certificates(project.root)
    assert [certificate["request"]["id"] for certificate in chain] == ["A", "B", "C"]
    assert [certificate["previous"] and certificate["previous"]["digest"] for certificate in chain] == [
        None,
        chain[0]["digest"],
        chain[1]["digest"],
    ]
    result = verify(project.root, project.registry)
    assert result.faults == [] and result.notes == [] and result.certificates == 3
    assert result.digests == 3 * 6 + 3 + 1  # files, subjects, and the production model in MLflow


def test_a_changed_or_missing_file_is_a_fault(certified):
    run = certified.root.parent / certificate_of(certified.root, "A")["run"]
    for file, role, remedy in (
        ("masks/saliency.safetensors", "mask", "dvc checkout"),
        ("models/unlearned/mmunlearner/weights.bin", "model after", "dvc checkout"),
        ("models/vanilla/weights.bin", "model before", "mlflow artifacts download"),
        ("prepared/samples.parquet", "samples", "dvc checkout"),
        ("scores/mmunlearner.parquet", "scores after", "dvc checkout"),
    ):
        path = run / "data" / file
        content = path.read_bytes()
        path.unlink()
        for changed in (None, content[:-1] + bytes([content[-1] ^ 1])):
            if changed is not None:
                path.write_bytes(changed)
            (fault,) = faults_of(certified)
            assert f"certificate A: {role} is " in fault and remedy in fault
        path.write_bytes(content)
    assert faults_of(certified) == []


@pytest.mark.slow
def test_the_remedy_for_the_model_before_restores_it(project):
    project.forget("A", PEOPLE[1])
    path = certificate_of(project.root, "A")["files"]["model before"]["path"]
    (project.root.parent / path / "weights.bin").unlink()
    (fault,) = faults_of(project)
    command = fault.partition("restore it with: ")[2]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=project.root.parent, env=environment)
    assert faults_of(project) == []


def test_a_changed_certificate_page_request_state_or_salt_is_a_fault(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.forget("B", PEOPLE[2])
    folder = certificate_folder(project.root)

    def faults_with(path, old, new):
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))
        faults = "\n".join(faults_of(project))
        path.write_text(content)
        assert faults_of(project) == []
        return faults

    first, page = folder / "0001-A.json", folder / "0001-A.html"
    assert "certificate A: " in faults_with(first, '"reason": "consent', '"reason": "no consent')
    assert f"{page} is changed" in faults_with(page, "consent withdrawn", "no consent")
    request = project.root / "requests" / "A.yaml"
    assert "request is changed" in faults_with(request, "case 7", "case 8")
    state = project.root / "requests" / "state" / "A.json"
    assert f"{state} differs" in faults_with(state, PEOPLE[1], PEOPLE[4])
    for key, old, new in (
        ("version", '"version": 2', '"version": 3'),
        ("registered_model", project.registry.name, "another"),
        ("certificate", '"certificate": "', '"certificate": "0'),
    ):
        assert key in faults_with(state, old, new)
    salt = project.root.parent / SALT
    assert (os.stat(salt).st_mode & 0o777) == 0o600
    assert "salt" in faults_with(salt, salt.read_text()[:8], "00000000")
    copy = state.rename(state.with_suffix(".copy"))
    assert f"certificate A: {state} is missing" in "\n".join(faults_of(project))
    copy.rename(state)
    first.rename(folder.parent / "copy.json")
    faults = "\n".join(faults_of(project))
    assert "certificate B is number 2" in faults and "request A: its certificate" in faults


def test_a_forged_certificate_breaks_the_chain(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.forget("B", PEOPLE[2])
    forged = read_json(certificate_folder(project.root) / "0001-A.json")
    forged["request"]["due"] = "2030-01-01"
    forged["digest"] = digest_of(forged)
    write_certificate(project.root, forged)
    faults = "\n".join(faults_of(project))
    assert "certificate B follows A" in faults


def test_a_chain_that_another_key_signed_is_a_fault(project, monkeypatch, tmp_path):
    """Who rewrites everything needs the private key, or the key that readers trust betrays it."""
    project.forget("A", PEOPLE[1])
    (key,) = public_keys(project.root)
    assert verify(project.root, project.registry, public_key=key.upper()).faults == []
    assert ((project.root.parent / KEY).stat().st_mode & 0o777) == 0o600
    foreign = write_key(tmp_path / "other.key")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "other.key"))
    with (certificate_folder(project.root) / PUBLIC_KEYS).open("a") as handle:
        handle.write(f"{foreign}\n")
    certificate = sign(project.root, certificate_of(project.root, "A"))
    write_certificate(project.root, certificate)
    assert faults_of(project) == [], "listed in the repository, as a new key of the operator is"
    (fault,) = verify(project.root, project.registry, public_key=key).faults
    assert certificate["signature"]["public_key"] == foreign and foreign in fault


def write_key(path, mode=0o600):
    """Write a new private key; returns the public one."""
    path.write_bytes(create_key())
    path.chmod(mode)
    return public_key_of(path.read_bytes())


def test_the_first_use_creates_a_key_and_lists_it_also_after_a_kill(project):
    key = signing_key(project.root)
    (project.root / "requests" / "certificates" / PUBLIC_KEYS).unlink()
    assert signing_key(project.root) == key and public_keys(project.root) == [public_key_of(key)]


def test_a_missing_wrong_foreign_or_readable_key_is_refused_and_no_other_created(
    project, monkeypatch, tmp_path
):
    signing_key(project.root)
    own, other = project.root.parent / KEY, tmp_path / "other.key"
    content, listed = own.read_bytes(), public_keys(project.root)

    def refusal():
        with pytest.raises(ArtifactError) as error:
            signing_key(project.root)
        assert public_keys(project.root) == listed
        return str(error.value)

    own.unlink()
    assert str(own) in refusal() and KEY_VARIABLE in refusal() and not own.exists()
    for wrong in (b"no key", content[:40], b""):
        own.write_bytes(wrong)
        own.chmod(0o600)
        assert str(own) in refusal() and KEY_VARIABLE in refusal()
    own.write_bytes(content)
    for mode in (0o644, 0o640, 0o604):
        own.chmod(mode)
        assert f"chmod 600 {own}" in refusal() and f"{mode:o}" in refusal()
    own.chmod(0o400)
    assert signing_key(project.root) == content
    monkeypatch.setenv(KEY_VARIABLE, str(other))
    assert str(other) in refusal()
    other.mkdir()
    assert str(other) in refusal()
    other.rmdir()
    foreign = write_key(other)
    assert foreign in refusal() and PUBLIC_KEYS in refusal()


def test_without_the_salt_the_rest_is_verified_with_a_note(project):
    project.forget("A", PEOPLE[1])
    (project.root.parent / SALT).unlink()
    result = verify(project.root, project.registry)
    assert result.faults == [] and SALT_VARIABLE in result.notes[0]


def test_the_salt_can_come_from_the_environment(project, monkeypatch):
    monkeypatch.setenv(SALT_VARIABLE, "x" * 40)
    project.forget("A", PEOPLE[1])
    assert not (project.root.parent / SALT).exists()
    assert faults_of(project) == []
    monkeypatch.setenv(SALT_VARIABLE, "short")
    assert SALT_VARIABLE in faults_of(project)[0] and "5 characters" in faults_of(project)[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"number": 1', '"number": 1, "number": 1'),
        lambda text: text.replace('"seed": 0', '"seed": NaN'),
        lambda text: text.replace('"seed": 0', '"seed": Infinity'),
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: json.dumps(json.loads(text) | {"request": "A"}),
        lambda text: json.dumps(json.loads(text) | {"files": {"mask": 1}}),
        lambda text: json.dumps(json.loads(text) | {"scores": None}),
        lambda text: json.dumps(json.loads(text) | {"models": {}}),
        lambda text: json.dumps(json.loads(text) | {"made": []}),
        lambda text: json.dumps(json.loads(text) | {"signature": {}}),
        lambda text: json.dumps(json.loads(text) | {"number": "one"}),
        lambda text: json.dumps(json.loads(text) | {"number": True}),
    ],
)
def test_a_damaged_certificate_is_a_fault_that_names_the_file(certified, change):
    path = certificate_folder(certified.root) / "0001-A.json"
    content = path.read_text()
    path.write_text(change(content))
    faults = "\n".join(faults_of(certified))
    path.write_text(content)
    assert "certificate A" in faults or str(path) in faults


def test_a_changed_copy_in_mlflow_is_a_fault(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    (weights,) = [
        path
        for path in (project.root.parent / "mlartifacts").rglob("weights.bin")
        if path.read_bytes() != (project.root / "models" / "vanilla" / "weights.bin").read_bytes()
    ]
    weights.write_bytes(b"other weights")
    (fault,) = faults_of(project)
    assert f"version 2 of {project.registry.name}" in fault


def test_a_version_missing_in_mlflow_is_a_fault_and_no_mlflow_a_note(project, database, monkeypatch):
    project.forget("A", PEOPLE[1])
    shutil.copy(database, project.root.parent / "mlflow.db")
    (fault,) = faults_of(project)
    assert "certificate A: version 2" in fault
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = verify(project.root, project.registry)
    assert result.faults == [] and "MLflow" in result.notes[0]


def test_uncommitted_files_are_noted(project, monkeypatch):
    monkeypatch.setattr("tasks.requests.finish.uncommitted_files", lambda project: ["efface/x.py"])
    project.forget("A", PEOPLE[1])
    result = verify(project.root, project.registry)
    assert result.faults == [] and "efface/x.py" in result.notes[0]
    page = certificate_folder(project.root) / "0001-A.html"
    assert "uncommitted" in page.read_text()


def test_certificates_hold_after_promotion_rollback_and_a_dropped_candidate(project):
    project.forget("A", PEOPLE[1])
    promote(project.root, project.registry)
    project.forget("B", PEOPLE[2])
    rollback(project.root, project.registry, "complaints")
    assert faults_of(project) == []
