"""Whom the next run forgets, and from which model; nothing wrong gets that far, and nothing is lost by it."""

import json
import shutil
import socket

import pytest

from efface.errors import ArtifactError
from tasks.requests import planning
from tasks.requests.intake import RequestError
from tasks.requests.planning import RUNS, Plan
from tasks.requests.registry import CANDIDATE, PRODUCTION, RegistryError
from tasks.requests.state import Outcome, read_outcomes, write_outcome
from tasks.runtime.artifacts import digest
from tests.made_requests import PEOPLE, params_with


def test_the_first_run_starts_from_vanilla_which_becomes_version_1(office):
    office.ask("A", PEOPLE[3])
    plan = office.made()
    assert plan.batch == {"A": [PEOPLE[3]]} and plan.earlier == {}
    assert plan.start == plan.original and plan.start.number == 1
    assert plan.start.digest == digest(office.root / "models" / "vanilla")
    assert office.registry.pointed(PRODUCTION) == 1
    assert office.made() == plan, "asked again, the same run in the same folder"
    assert len(office.registry.versions()) == 1


def test_those_due_first_are_taken_up_first_and_no_more_than_a_batch(office):
    for name, person, due in (("A", 1, "2099-03-01"), ("B", 2, "2099-01-01"), ("C", 3, "2099-02-01")):
        office.ask(name, PEOPLE[person], due=due)
    office.params = params_with(batch_size=2)
    assert list(office.made().batch) == ["B", "C"]
    assert list(office.made("A").batch) == ["A"]


def test_an_overdue_request_is_taken_up_before_all_others(office):
    office.ask("A", PEOPLE[1])
    office.ask("B", PEOPLE[2], due="2026-01-03")
    assert list(office.made().batch) == ["B", "A"]


def test_what_was_forgotten_is_neither_forgotten_again_nor_kept(office):
    office.params = params_with(auto_promote=True)
    assert office.forget("A", PEOPLE[1]) == 2
    office.ask("B", PEOPLE[5])
    plan = office.made()
    assert plan.earlier == {"A": [PEOPLE[1]]} and plan.start.number == 2 and plan.original.number == 1
    values = planning.edits(plan, office.params)
    assert values["prepare.forget_people"] == [PEOPLE[5]]
    assert values["prepare.forgotten_people"] == [PEOPLE[1]]
    assert plan.start_folder != plan.original_folder
    assert digest(plan.start_folder) == plan.start.digest != plan.original.digest
    assert planning.targets(plan, office.params)["evaluate"] == [
        "evaluate@mmunlearner",
        "evaluate@vanilla",
        "evaluate@original",
    ]


def test_a_candidate_that_nobody_promoted_is_made_anew_with_what_came_since(office):
    office.forget("A", PEOPLE[1])
    assert office.plan() == {}, "nothing new: the candidate waits"
    office.ask("B", PEOPLE[5])
    plan = office.made()
    assert plan.batch == {"A": [PEOPLE[1]], "B": [PEOPLE[5]]} and plan.start.number == 1


def test_everybody_to_be_forgotten_is_asked_about(office):
    office.ask("A", *PEOPLE[:5])
    data = office.params.model_dump(mode="json", exclude_unset=True)
    data["evaluate"]["max_people"] = 2
    values = planning.edits(office.made(), type(office.params).model_validate(data))
    assert values["evaluate.max_people"] == 5 and values["prepare.validation_fraction"] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subjects": ["fictitious/999"]}, "request A: nobody is called fictitious/999"),
        ({"subjects": ["real/000"]}, "request A: nobody is called real/000"),
        ({"subjects": None, "selector": {"name": "Nobody*"}}, "request A: the selector fits none of 8"),
        ({"due": "2025-01-01"}, "A.yaml: due is 2025-01-01, before received"),
    ],
)
def test_a_bad_request_is_told_kept_and_holds_up_no_other(office, changes, words):
    bad = office.ask("A", PEOPLE[1], **changes)
    office.ask("B", PEOPLE[2])
    before = bad.read_text()
    plan = office.made()
    assert list(plan.batch) == ["B"] and words in plan.problems["A"]
    assert bad.read_text() == before and read_outcomes(office.root) == {}
    with pytest.raises(RequestError) as raised:
        office.plan("A")
    assert words in str(raised.value)


def test_malformed_yaml_is_told_kept_and_holds_up_no_other(office):
    bad = office.ask("A", PEOPLE[1])
    bad.write_text("subjects: [")
    office.ask("B", PEOPLE[2])
    plan = office.made()
    assert list(plan.batch) == ["B"] and "A.yaml is not readable as YAML" in plan.problems["A"]
    assert bad.read_text() == "subjects: ["


def test_two_requests_for_one_person_are_told_apart(office):
    office.ask("A", PEOPLE[1], due="2099-01-01")
    office.ask("B", PEOPLE[1], PEOPLE[2], due="2099-02-01")
    plan = office.made()
    assert list(plan.batch) == ["A"]
    assert plan.problems["B"].startswith(f"request B: {PEOPLE[1]} is named by request A too")


def test_somebody_already_forgotten_is_told_with_what_forgot_them(office):
    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.ask("B", PEOPLE[1])
    problems = office.plan()
    assert problems["B"].startswith(
        f"request B: {PEOPLE[1]} is forgotten already, with request A (version 2)"
    )
    with pytest.raises(RequestError, match="forgotten already"):
        planning.must_fit(
            office.root, planning.read_requests(office.root)[0]["B"].model_copy(update={"id": "C"})
        )


def test_nobody_left_to_keep_is_refused(office):
    office.ask("A", *PEOPLE)
    with pytest.raises(RequestError, match="ask to forget everybody there is"):
        office.plan()


def test_without_a_vanilla_model_it_says_how_to_make_one(office):
    office.ask("A", PEOPLE[1])
    shutil.rmtree(office.root / "models" / "vanilla")
    with pytest.raises(ArtifactError, match="dvc repro vanilla"):
        office.plan()
    assert office.registry.versions() == {}


def test_mlflow_out_of_reach_changes_nothing(office, monkeypatch):
    path = office.ask("A", PEOPLE[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{port}")
    with pytest.raises(RegistryError) as raised:
        office.plan()
    assert "does not answer" in str(raised.value) and "every request is kept" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert path.is_file() and read_outcomes(office.root) == {}


def test_the_production_model_is_fetched_where_its_folder_is_gone_or_another(office):
    office.ask("A", PEOPLE[1])
    first = office.made()
    (office.root / "models" / "vanilla" / "weights.bin").write_bytes(b"trained again")
    again = office.made()
    assert again.start == first.start and again.run == first.run
    assert digest(again.start_folder) == first.start.digest
    assert again.start_folder.is_relative_to(office.root.parent / RUNS)


def test_a_production_alias_moved_in_mlflow_is_followed(office):
    office.params = params_with(auto_promote=True)
    office.forget("A", PEOPLE[1])
    office.registry.point(PRODUCTION, 1)
    assert office.plan() == {}
    desk = planning.look(office.root, office.registry.lineage(1))
    assert desk.outcomes["A"].status == "needs-attention"
    assert "version 2, which forgot them, is no longer in production" in desk.outcomes["A"].reasons[0]


def test_the_alias_of_a_version_that_requests_did_not_make_is_refused(office):
    office.ask("A", PEOPLE[1])
    office.made()
    with office.registry._client() as client:
        made = client.create_model_version(office.registry.name, "somewhere", await_creation_for=0)
    office.registry.point(PRODUCTION, int(made.version))
    with pytest.raises(RegistryError, match="was not made by requests"):
        office.plan()


def test_weights_registered_by_others_are_not_stored_twice(office):
    folder, name = office.root / "models" / "vanilla", office.registry.name
    with office.registry._client() as client:
        client.create_registered_model(name)
        tags = {"efface.model_digest": digest(folder)}
        client.create_model_version(name, str(folder), tags=tags, await_creation_for=0)
    office.ask("A", PEOPLE[1])
    assert office.made().start.number == 1
    assert len(office.registry._all()) == 1 and office.registry.pointed(CANDIDATE) is None


def test_a_request_that_needs_attention_is_not_taken_up_by_itself(office):
    office.ask("A", PEOPLE[1])
    failed = Outcome(status="needs-attention", run="r", subjects=[PEOPLE[1]], reasons=["x"], time="t")
    write_outcome(office.root, "A", failed)
    assert office.plan() == {}


def test_the_given_models_are_whole_and_of_the_right_digest(office):
    office.ask("A", PEOPLE[1])
    plan = office.made()
    assert isinstance(plan, Plan)
    planning.give_models(plan, office.params, office.root)
    given = office.root.parent / RUNS / plan.run / "data" / "models"
    assert digest(given / "vanilla") == plan.start.digest
    (given / "vanilla" / "config.json").unlink()
    (given / "vanilla" / "config.json").write_text("{}")
    planning.give_models(plan, office.params, office.root)
    assert digest(given / "vanilla") == plan.start.digest
    office.params = params_with(retrained=True)
    with pytest.raises(ArtifactError, match="dvc repro base"):
        planning.give_models(plan, office.params, office.root)
    assert json.loads((office.root / "models" / "vanilla" / "config.json").read_text())
