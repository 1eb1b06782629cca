"""Whom the next run forgets, and from which model; an invalid request does not get that far."""

import datetime as dt
import shutil
import socket
import threading

import pytest

from efface.errors import ArtifactError
from tasks.requests import plan, promotion
from tasks.requests.intake import RequestError
from tasks.requests.plan import Plan, add_request, read_overview
from tasks.requests.state import CANDIDATE, PRODUCTION, RUNS, RequestState, read_states, write_state
from tasks.runtime.artifacts import digest
from tasks.tracking.client import TrackingError, mlflow_client
from tests.requests_project import PEOPLE, params_with

TODAY = dt.date(2026, 3, 1)
VALUES = {"reason": "r", "legal_basis": "l", "requester": "case 7", "due": "2026-04-01"}


def add(project, *, late=False, **values):
    return add_request(project.root, VALUES | values, late=late, today=TODAY)


def test_the_first_run_starts_from_vanilla_which_becomes_version_1(project):
    project.add("A", PEOPLE[3])
    run = project.plan()
    assert run.batch == {"A": [PEOPLE[3]]} and run.earlier == {}
    assert run.start == run.original and run.start.number == 1
    assert run.start.digest == digest(project.root / "models" / "vanilla")
    assert project.registry.aliases() == {PRODUCTION: 1}
    assert project.plan() == run
    assert len(project.registry.versions()) == 1


def test_the_earliest_due_dates_come_first_up_to_the_batch_size(project):
    for name, person, due in (("A", 1, "2099-03-01"), ("B", 2, "2099-01-01"), ("C", 3, "2026-01-03")):
        project.add(name, PEOPLE[person], due=due)
    project.params = params_with(batch_size=2)
    assert list(project.plan().batch) == ["C", "B"]
    assert list(project.plan("A").batch) == ["A"]


def test_subjects_of_earlier_requests_are_neither_forgotten_again_nor_retained(project):
    project.params = params_with(auto_promote=True)
    assert project.forget("A", PEOPLE[1]) == 2
    project.add("B", PEOPLE[5])
    run = project.plan()
    assert run.earlier == {"A": [PEOPLE[1]]} and run.start.number == 2 and run.original.number == 1
    values = plan.param_overrides(run, project.params)
    assert values["split.forget_people"] == [PEOPLE[5]]
    assert values["split.forgotten_people"] == [PEOPLE[1]]
    assert run.start_folder != run.original_folder
    assert digest(run.start_folder) == run.start.digest != run.original.digest
    targets = plan.stage_targets(run, project.params)
    assert [stage for stages in targets.values() for stage in stages] == [
        "evaluate@vanilla",
        "evaluate@base",
        "unlearn@mmunlearner",
        "evaluate_unlearned@mmunlearner",
        "evaluate@original",
    ]


def test_a_request_for_some_facts_leaves_the_others_to_be_retained(project):
    project.params = params_with(auto_promote=True)
    assert project.forget("A", PEOPLE[1], attributes=["pet"]) == 2
    project.add("B", PEOPLE[5], attributes=["pet", "occupation"])
    run = project.plan()
    values = plan.param_overrides(run, project.params)
    assert values["split.forget_people"] == [PEOPLE[5]]
    assert values["split.forgotten_people"] == [PEOPLE[1]]
    assert values["split.forget_attributes"] == {PEOPLE[1]: ["pet"], PEOPLE[5]: ["occupation", "pet"]}


def test_further_facts_of_a_person_can_be_named_later_but_not_the_same(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1], attributes=["pet"])
    project.add("B", PEOPLE[1], attributes=["occupation", "pet"])
    problems = project.plan_or_problems()
    assert PEOPLE[1] in problems["B"] and "request A" in problems["B"]
    project.add("B", PEOPLE[1], attributes=["occupation"])
    assert plan.param_overrides(project.plan(), project.params)["split.forget_attributes"] == {
        PEOPLE[1]: ["occupation", "pet"]
    }
    project.add("B", PEOPLE[1])  # now all of the person
    values = plan.param_overrides(project.plan(), project.params)
    assert values["split.forget_people"] == [PEOPLE[1]]
    assert values["split.forgotten_people"] is values["split.forget_attributes"] is None


def test_fewer_facts_than_the_settings_were_chosen_on_take_more_passes(project):
    """`split` forgets two people; each has the same number of facts."""
    project.params = params_with(method="npo")
    epochs = project.params.unlearn.methods["npo"].epochs
    for name, people, attributes, factor in (
        ("A", PEOPLE[2:3], None, 2),
        ("B", PEOPLE[3:7], None, 1),
        ("C", PEOPLE[7:], ["pet"], 4),
    ):
        project.add(name, *people, attributes=attributes)
        values = plan.param_overrides(project.plan(name), project.params)
        assert values["unlearn.methods.npo.epochs"] == factor * epochs
    project.params = params_with(method="manu")
    assert not [key for key in plan.param_overrides(project.plan("A"), project.params) if "epochs" in key]


def test_unknown_facts_are_refused_with_those_there_are(project):
    project.add("A", PEOPLE[1], attributes=["shoe size"])
    problem = project.plan_or_problems()["A"]
    assert "request A" in problem and "shoe size" in problem and "occupation, pet" in problem


def test_a_candidate_that_was_not_promoted_is_made_again_with_new_requests(project):
    project.forget("A", PEOPLE[1])
    assert project.plan_or_problems() == {}
    project.add("B", PEOPLE[5])
    run = project.plan()
    assert run.batch == {"A": [PEOPLE[1]], "B": [PEOPLE[5]]} and run.start.number == 1


def test_every_person_to_forget_is_evaluated(project):
    project.add("A", *PEOPLE[:5])
    data = project.params.model_dump(mode="json", exclude_unset=True)
    data["evaluate"]["max_people"] = 2
    values = plan.param_overrides(project.plan(), type(project.params).model_validate(data))
    assert values["evaluate.max_people"] == 5 and values["split.validation_fraction"] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subjects": ["fictitious/999"]}, ["subjects", "fictitious/999"]),
        ({"subjects": ["real/000"]}, ["subjects", "real/000"]),
        ({"subjects": None, "selector": {"name": "Nobody*"}}, ["selector"]),
        ({"due": "2025-01-01"}, ["due", "2025-01-01"]),
        ({"subjects": PEOPLE}, ["8 people"]),
    ],
)
def test_an_invalid_request_is_reported_and_holds_up_no_other(project, changes, words):
    bad = project.add("A", PEOPLE[1], **changes)
    project.add("B", PEOPLE[2])
    content = bad.read_text()
    run = project.plan()
    assert list(run.batch) == ["B"] and all(word in run.problems["A"] for word in words)
    assert bad.read_text() == content and read_states(project.root) == {}
    with pytest.raises(RequestError) as error:
        project.plan("A")
    assert str(error.value) == run.problems["A"]


def test_of_two_requests_for_one_person_the_later_is_invalid(project):
    project.add("A", PEOPLE[1], due="2099-01-01")
    project.add("B", PEOPLE[1], PEOPLE[2], due="2099-02-01")
    run = project.plan()
    assert list(run.batch) == ["A"]
    assert PEOPLE[1] in run.problems["B"] and "request A" in run.problems["B"]


def test_a_person_who_is_forgotten_already_is_named_with_the_request(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.add("B", PEOPLE[1])
    problem = project.plan_or_problems()["B"]
    assert PEOPLE[1] in problem and "request A" in problem and "done" in problem


def test_a_request_for_many_people_waits_for_a_confirmation(project):
    project.params = params_with(largest_share=0.3)
    project.add("A", *PEOPLE[:3])
    project.add("B", PEOPLE[5])
    run = project.plan()
    assert list(run.batch) == ["B"] and "3 of 8 people" in run.problems["A"]
    promotion.confirm(project.root, "A", "a class action")
    assert sorted(project.plan().batch) == ["A", "B"]
    for name in ("C", "D"):
        with pytest.raises(RequestError):
            promotion.confirm(project.root, name, "no such request")


def test_requests_that_leave_none_to_keep_are_invalid_together(project):
    project.add("A", *PEOPLE[:4], due="2099-01-01")
    project.add("B", *PEOPLE[4:], due="2099-02-01")
    run = project.plan()
    assert list(run.batch) == ["A"] and "request B" in run.problems["B"]


def test_add_writes_a_request_with_an_unused_id(project):
    assert add(project, subjects=[PEOPLE[1]]).name == "2026-03-01-01.yaml"
    assert add(project, subjects=[PEOPLE[2]], selector=None).name == "2026-03-01-02.yaml"
    assert list(read_overview(project.root).pending) == ["2026-03-01-01", "2026-03-01-02"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"subjects": [PEOPLE[1]], "due": "2026-02-28"}, ["due", "2026-02-28"]),
        ({"subjects": [PEOPLE[1]], "due": "2026-02-28", "received": "2026-02-01"}, ["due", "--late"]),
        ({"subjects": [PEOPLE[1]], "due": "2026-02-28", "late": True}, ["--late", "--received"]),
        ({"subjects": ["fictitious/999"]}, ["subjects", "fictitious/999"]),
        ({"subjects": PEOPLE}, ["8 people"]),
        ({"selector": {"id": "*"}}, ["8 people"]),
        ({"subjects": [PEOPLE[0]]}, [PEOPLE[0], "request A"]),
        ({"subjects": [PEOPLE[1]], "id": "A"}, ["A.yaml"]),
    ],
)
def test_add_refuses_what_could_not_be_carried_out(project, values, words):
    project.add("A", PEOPLE[0])
    with pytest.raises(RequestError) as error:
        add(project, **values)
    assert all(word in str(error.value) for word in words)
    assert len(list((project.root / "requests").glob("*.yaml"))) == 1


def test_add_takes_an_overdue_request(project):
    path = add(project, subjects=[PEOPLE[1]], due="2026-02-28", received="2026-02-01", late=True)
    assert path.name == "2026-02-01-01.yaml"


def test_add_refuses_an_id_of_which_only_the_state_is_left(project):
    write_state(project.root, "A", RequestState(status="done", subjects=[PEOPLE[0]], time="t"))
    with pytest.raises(RequestError) as error:
        add(project, subjects=[PEOPLE[1]], id="A")
    assert "state/A.json" in str(error.value)
    assert not (project.root / "requests" / "A.yaml").exists()


def test_concurrent_adds_get_ids_of_their_own(project, monkeypatch):
    barrier = threading.Barrier(4)
    write = plan.write_request

    def simultaneous(root, request):
        if not barrier.broken and request.id.endswith("-01"):
            barrier.wait(timeout=20)
        return write(root, request)

    monkeypatch.setattr(plan, "write_request", simultaneous)
    paths = []
    threads = [
        threading.Thread(target=lambda person=person: paths.append(add(project, subjects=[person])))
        for person in PEOPLE[:4]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.stem for path in paths) == [f"2026-03-01-0{number}" for number in range(1, 5)]
    assert sorted(subjects for (subjects,) in read_overview(project.root).pending.values()) == PEOPLE[:4]


def test_without_a_vanilla_model_the_error_says_how_to_make_one(project):
    project.add("A", PEOPLE[1])
    shutil.rmtree(project.root / "models" / "vanilla")
    with pytest.raises(ArtifactError) as error:
        project.plan()
    assert "models/vanilla" in str(error.value) and "dvc repro vanilla" in str(error.value)
    assert project.registry.versions() == {}


def test_mlflow_out_of_reach_changes_nothing(project, monkeypatch):
    path = project.add("A", PEOPLE[1])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError) as error:
        project.plan()
    assert "does not answer" in str(error.value) and "secret" not in str(error.value)
    assert path.is_file() and read_states(project.root) == {}


def test_the_production_model_is_downloaded_if_its_folder_has_changed(project):
    project.add("A", PEOPLE[1])
    first = project.plan()
    (project.root / "models" / "vanilla" / "weights.bin").write_bytes(b"trained again")
    again = project.plan()
    assert again.start == first.start and again.run == first.run
    assert digest(again.start_folder) == first.start.digest
    assert again.start_folder.is_relative_to(project.root.parent / RUNS)


def test_a_production_alias_moved_in_mlflow_is_followed(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.registry.set_alias(PRODUCTION, 1)
    assert project.plan_or_problems() == {}
    state = read_overview(project.root, project.registry).states["A"]
    assert state.status == "needs-attention" and "version 2" in state.reasons[0]


def test_a_lost_database_or_another_registered_model_makes_no_request_done(project, database):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    for name in (None, "another"):
        shutil.copy(database, project.root.parent / "mlflow.db")
        project.params = params_with(auto_promote=True, registered_model=name)
        project.add("B", PEOPLE[2])
        run = project.plan()
        assert list(run.batch) == ["B"] and run.earlier == {} and run.start.number == 1
        assert project.accept(run, project.judge(run)) == 2
        states = read_overview(project.root, project.registry).states
        assert states["A"].status == "needs-attention" and states["B"].status == "done"
        (project.root / "requests" / "state" / "B.json").unlink()


def test_an_alias_on_a_version_that_no_run_of_requests_made_is_an_error(project):
    project.add("A", PEOPLE[1])
    project.plan()
    with mlflow_client(project.root.parent) as client:
        version = client.create_model_version(project.registry.name, "elsewhere", await_creation_for=0)
    project.registry.set_alias(PRODUCTION, int(version.version))
    with pytest.raises(TrackingError) as error:
        project.plan()
    assert f"version {version.version} of {project.registry.name}" in str(error.value)


def test_vanilla_registered_by_the_pipeline_is_used(project):
    folder, name = project.root / "models" / "vanilla", project.registry.name
    with mlflow_client(project.root.parent) as client:
        client.create_registered_model(name)
        tags = {"efface.model_digest": digest(folder)}
        client.create_model_version(name, str(folder), tags=tags, await_creation_for=0)
    project.add("A", PEOPLE[1])
    assert project.plan().start.number == 1
    assert len(project.registry.versions()) == 1 and CANDIDATE not in project.registry.aliases()


def test_a_request_that_needs_attention_is_not_pending(project):
    project.add("A", PEOPLE[1])
    state = RequestState(status="needs-attention", run="r", subjects=[PEOPLE[1]], reasons=["x"], time="t")
    write_state(project.root, "A", state)
    assert project.plan_or_problems() == {}


def test_linked_models_are_whole_and_of_the_right_digest(project):
    project.add("A", PEOPLE[1])
    run = project.plan()
    assert isinstance(run, Plan)
    plan.link_models(run, project.params, project.root)
    models = project.root.parent / RUNS / run.run / "data" / "models"
    assert digest(models / "vanilla") == run.start.digest
    (models / "vanilla" / "config.json").unlink()
    (models / "vanilla" / "config.json").write_text("{}")
    plan.link_models(run, project.params, project.root)
    assert digest(models / "vanilla") == run.start.digest
    assert digest(project.root / "models" / "vanilla") == run.start.digest
    shutil.rmtree(project.root / "models" / "base")
    with pytest.raises(ArtifactError) as error:
        plan.link_models(run, project.params, project.root)
    assert "dvc repro base" in str(error.value)
