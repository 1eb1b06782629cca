"""A purge deletes all data of a request's people, records what it deleted, and resumes after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from tasks.requests import promotion, purge
from tasks.requests.certificates import certificate_folder, certificate_of, public_keys, verify
from tasks.requests.intake import RequestError
from tasks.requests.plan import add_request, read_overview
from tasks.requests.state import PRODUCTION, read_states
from tasks.requests.storage import StorageError
from tasks.runtime.artifacts import digest
from tasks.runtime.purged import PURGED
from tasks.runtime.salt import SALT
from tasks.tracking.client import TrackingError, mlflow_client
from tests.requests_project import NAMES, PEOPLE, params_with, write_benchmark
from tests.tasks.requests.purged_project import PERSON, all_traces, office_of, run_purge


def test_after_a_purge_neither_name_nor_id_nor_picture_is_left(done):
    before = {path.relative_to(done.root.parent.parent).parts[0:3] for path in all_traces(done)}
    assert len(before) > 5, "the search finds them before"
    assert done.picture in (done.root / "benchmarks" / "faces.parquet").read_bytes()
    record = run_purge(done)
    assert all_traces(done) == set()
    for cache in (done.root.parent / ".dvc" / "cache", office_of(done)):
        assert not (cache / "runs").exists(), "DVC stumbles over empty folders there"
    assert record["request"]["subjects"] == certificate_of(done.root, "A")["request"]["subjects"]
    deleted = record["purge"]["deleted"]
    assert {"data/benchmarks", "data/prepared", "dvc.lock", "data/requests/A.yaml"} <= set(deleted["project"])
    assert all(deleted[name]["objects"] for name in deleted if name.startswith("DVC"))
    assert any("clones" in line for line in record["purge"]["not_reached"])
    assert read_states(done.root)["A"].status == "purged" and read_states(done.root)["A"].subjects == []
    assert (done.root / "requests" / "B.yaml").is_file()


def test_models_that_know_them_lose_their_files_and_the_others_stay(done):
    versions = done.registry.versions()
    run_purge(done)
    assert [v.purged for v in done.registry.versions().values()] == [True, False, False]
    assert done.registry.aliases() == {PRODUCTION: 3}
    for number in (2, 3):
        folder = done.root.parent / versions[number].folder
        assert digest(folder) == versions[number].digest
        copy = done.registry.download(number, done.root.parent / f"copy-{number}")
        assert digest(copy) == versions[number].digest
    with mlflow_client(done.root.parent) as client:
        run = client.get_model_version(done.registry.name, "1").run_id
        assert client.list_artifacts(run) == []
    (done.root.parent / versions[3].folder / "weights.bin").unlink()
    with Repo(str(done.root.parent)) as repo:
        repo.checkout(str(done.root.parent / f"{versions[3].folder}.dvc"), force=True)
    assert digest(done.root.parent / versions[3].folder) == versions[3].digest, "DVC keeps it too"


def test_verification_accepts_only_recorded_deletions(done):
    run_purge(done)
    result = verify(done.root, done.registry)
    assert result.faults == [] and result.certificates == 3
    certificate = certificate_of(done.root, "B")
    path = done.root.parent / certificate["files"]["request"]["path"]
    content = path.read_bytes()
    path.unlink()
    assert "certificate B: request is missing" in verify(done.root, done.registry).faults[0]
    path.write_bytes(content)
    path = done.root.parent / certificate_of(done.root, "A")["files"]["samples"]["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("back again")
    assert "certificate A: samples is at" in "\n".join(verify(done.root, done.registry).faults)


@pytest.mark.parametrize("purged", [False, True])
def test_a_change_of_any_file_is_detected_before_and_after_a_purge(done, purged):
    if purged:
        run_purge(done)
    assert verify(done.root, done.registry).faults == []
    folder = done.root.parent
    files = {folder / f["path"] for r in ("A", "B") for f in certificate_of(done.root, r)["files"].values()}
    files = {p for f in files if f.exists() for p in (f.rglob("*") if f.is_dir() else [f]) if p.is_file()}
    files |= {p for p in certificate_folder(done.root).iterdir() if p.is_file()}
    files |= set((done.root / "requests" / "state").iterdir()) | ({done.root / PURGED} if purged else set())
    files.add(folder / SALT)
    assert len(files) >= (12 if purged else 20)
    for path in sorted(files):
        content = path.read_bytes()
        for changed in (None, content[: len(content) // 2] + b"0" + content[len(content) // 2 + 1 :]):
            if changed == content:
                changed = content[: len(content) // 2] + b"1" + content[len(content) // 2 + 1 :]
            path.unlink() if changed is None else path.write_bytes(changed)
            result = verify(done.root, done.registry)
            assert result.faults or (path.name == SALT.name and result.notes), (path, changed is None)
        path.write_bytes(content)
    assert verify(done.root, done.registry).faults == []


def test_a_rollback_past_a_purge_is_refused(done):
    run_purge(done)
    with pytest.raises(RequestError) as error:
        promotion.rollback(done.root, done.registry, "complaints", to=1)
    assert "version 1" in str(error.value) and "purged" in str(error.value)
    newer, older, requests = promotion.rollback(done.root, done.registry, "complaints")
    assert (newer, older, requests) == (3, 2, ["B"])
    with pytest.raises(RequestError) as error:
        promotion.rollback(done.root, done.registry, "again", to=1)
    assert done.registry.aliases() == {PRODUCTION: 2}


def test_the_next_run_starts_without_the_purged_people(done):
    run_purge(done)
    write_benchmark(done.root, None, without=[PERSON])
    done.add("C", PEOPLE[4])
    run = done.plan()
    assert run.earlier == {"B": [PEOPLE[2]]} and run.original.number == 2
    assert done.accept(run, done.judge(run)) == 4
    assert verify(done.root, done.registry).faults == []
    assert certificate_of(done.root, "C")["not_retested"] == {
        "A": certificate_of(done.root, "B")["made"]["time"]
    }


KILLS = """
import os, signal, sys
from pathlib import Path
from tasks.requests import purge
from tasks.tracking.registry import Registry
place, name, skipped = sys.argv[1:]
module = {"purge": purge, "registry": Registry}[place]
original, calls = getattr(module, name), []
def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) > int(skipped):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(module, name, killed)
purge.carry_out(Path("data"))
purge.complete(Path("data"), "A")
"""


@pytest.mark.slow
def test_a_killed_purge_resumes_with_the_same_result(done, tmp_path):
    folder = done.root.parent
    purge.start(done.root, purge.plan_purge(done.params, done.root, done.registry, "A"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    steps = [("registry", "delete_files", 0), ("purge", "delete_objects", 0), ("purge", "_write_pointers", 0)]
    steps += [("purge", "_remove", 0), ("purge", "_remove", 3), ("purge", "_record", 0)]
    steps += [("purge", "write_json", 0), ("purge", "write_certificate", 0), ("purge", "writing", 0)]
    steps += [("purge", "write_state", 0), ("purge", "write_json", 0)]
    for step in steps:
        command = [sys.executable, "-c", KILLS, *map(str, step)]
        code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        assert code == -signal.SIGKILL, step
        with pytest.raises(RequestError) as error:
            promotion.resume(done.root)
        assert "purge A" in str(error.value)
    run_purge(done)
    assert all_traces(done) == set() and verify(done.root, done.registry).faults == []
    records = list(certificate_folder(done.root).glob("0003-*.json"))
    assert len(records) == 1 and not list(certificate_folder(done.root).glob("0004-*"))


def test_a_purge_of_a_request_that_is_not_done_is_refused(done):
    done.add("C", PEOPLE[4])
    for request in ("C", "D"):
        with pytest.raises(RequestError) as error:
            purge.plan_purge(done.params, done.root, done.registry, request)
        assert f"request {request} is pending" in str(error.value)
    promotion.rollback(done.root, done.registry, "complaints", to=1)
    with pytest.raises(RequestError) as error:
        purge.plan_purge(done.params, done.root, done.registry, "A")
    assert "request A is needs-attention" in str(error.value)


def test_a_purge_of_a_person_whom_another_request_names_is_refused_unless_withdrawn(done):
    done.add("C", NAMES[PERSON], PEOPLE[4])
    with pytest.raises(RequestError) as error:
        purge.plan_purge(done.params, done.root, done.registry, "A")
    assert "request C" in str(error.value) and "withdraw" in str(error.value)
    promotion.withdraw(done.root, "C", "sent twice")
    run_purge(done)
    assert all_traces(done) == set()
    assert not (done.root / "requests" / "C.yaml").exists()
    write_benchmark(done.root, None, without=[PERSON])
    with pytest.raises(RequestError) as error:
        purge.plan_purge(done.params, done.root, done.registry, "A")
    assert "request A is purged" in str(error.value)


def test_a_request_for_some_facts_is_not_purged(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PERSON, attributes=["pet"])
    with pytest.raises(RequestError) as error:
        purge.plan_purge(project.params, project.root, project.registry, "A")
    assert "request A" in str(error.value) and "pet" in str(error.value)


def test_parameters_that_name_the_person_are_to_be_changed_first(done):
    path = done.root.parent / "params.yaml"
    path.write_text(f"prepare: {{forget_people: [{PERSON}]}}\n")
    with pytest.raises(RequestError) as error:
        purge.plan_purge(done.params, done.root, done.registry, "A")
    assert "params.yaml" in str(error.value)


def test_with_the_remote_or_mlflow_away_nothing_is_deleted(done, monkeypatch):
    office = office_of(done)
    before = all_traces(done)
    office.rename(office.with_suffix(".away"))
    with pytest.raises(StorageError) as error:
        run_purge(done)
    assert "office" in str(error.value)
    office.with_suffix(".away").rename(office)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(TrackingError):
            run_purge(done)
    assert all_traces(done) == before and purge.unfinished(done.root) is None


def test_with_the_remote_or_mlflow_away_in_the_middle_a_later_call_completes_the_purge(done, monkeypatch):
    purge.start(done.root, purge.plan_purge(done.params, done.root, done.registry, "A"))
    office = office_of(done)
    with monkeypatch.context() as patch:
        patch.setattr(done.registry.__class__, "delete_files", away)
        with pytest.raises(TrackingError):
            purge.carry_out(done.root)
    office.rename(office.with_suffix(".away"))
    with pytest.raises(StorageError) as error:
        purge.carry_out(done.root)
    assert "office" in str(error.value) and read_states(done.root)["A"].status == "done"
    assert (done.root / "prepared" / "samples.parquet").is_file(), "later steps wait"
    office.with_suffix(".away").rename(office)
    run_purge(done)
    assert all_traces(done) == set() and verify(done.root, done.registry).faults == []


def away(*args, **kwargs):
    raise TrackingError("MLflow does not answer")


def test_on_a_full_disk_nothing_is_deleted(done, monkeypatch):
    before = all_traces(done)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(purge, "write_json", full)
        with pytest.raises(OSError):
            run_purge(done)
    assert all_traces(done) == before


def test_a_shared_remote_keeps_what_other_projects_put_there(done):
    foreign = office_of(done) / "files" / "md5" / "ab" / ("c" * 30)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("of another project")
    record = run_purge(done)
    assert foreign.is_file() and any(
        line.startswith("1 objects in") for line in record["purge"]["not_reached"]
    )


def test_files_that_still_name_the_person_are_in_the_record(done):
    notes = done.root.parent / "notes.txt"
    notes.write_text(f"call {NAMES[PERSON]}")
    assert "notes.txt, which names one of them" in run_purge(done)["purge"]["not_reached"]


def test_a_plan_changes_nothing(done):
    before = all_traces(done)
    plan = purge.plan_purge(done.params, done.root, done.registry, "A")
    assert json.dumps(plan) and all_traces(done) == before
    assert read_overview(done.root, done.registry).states["A"].status == "done"


def test_a_purged_person_can_be_named_by_no_new_request(done):
    run_purge(done)
    write_benchmark(done.root, None, without=[PERSON])
    values = {
        "subjects": [PERSON],
        "reason": "r",
        "legal_basis": "l",
        "requester": "case 7",
        "due": "2099-01-01",
    }
    import datetime as dt

    with pytest.raises(RequestError):
        add_request(done.root, values, late=False, today=dt.date(2026, 3, 1))
    assert public_keys(done.root)
