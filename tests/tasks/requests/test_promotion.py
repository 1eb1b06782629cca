"""Promotion and rollback: restartable at every step, and a repeated command changes nothing."""

import pytest

from tasks.requests import promotion
from tasks.requests.intake import RequestError
from tasks.requests.plan import read_overview
from tasks.requests.state import CANDIDATE, PRODUCTION, read_states
from tasks.tracking.registry import Registry
from tests.requests_project import PEOPLE, params_with


def end_state(project):
    """All that a command changes, without times."""
    states = {name: state.model_dump(exclude={"time"}) for name, state in read_states(project.root).items()}
    return project.registry.aliases(), states


def test_the_candidate_is_promoted_and_rolled_back(project):
    with pytest.raises(RequestError) as error:
        promotion.promote(project.root, project.registry)
    assert "no candidate" in str(error.value)
    project.forget("A", PEOPLE[1])
    assert promotion.promote(project.root, project.registry) == (2, ["A"])
    assert read_states(project.root)["A"].status == "done" and CANDIDATE not in project.registry.aliases()
    assert promotion.promote(project.root, project.registry) == (2, ["A"])
    project.forget("B", PEOPLE[2])
    assert promotion.rollback(project.root, project.registry, "complaints") == (2, 1, ["A"])
    states = read_states(project.root)
    assert states["A"].status == "needs-attention" and "complaints" in states["A"].reasons[0]
    assert states["B"].status == "pending" and project.registry.aliases() == {PRODUCTION: 1}
    promotion.retry(project.root, "A")
    with pytest.raises(RequestError) as error:
        promotion.retry(project.root, "A")
    assert "request A is pending" in str(error.value)
    assert list(project.plan().batch) == ["A", "B"]


def test_a_repeated_rollback_does_not_go_back_further(project):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.forget("B", PEOPLE[2])
    project.forget("C", PEOPLE[3])
    for _ in range(2):
        assert promotion.rollback(project.root, project.registry, "complaints") == (4, 3, ["C"])
    with pytest.raises(RequestError) as error:
        promotion.rollback(project.root, project.registry, "complaints", to=4)
    assert "version 3" in str(error.value) and "2, 1" in str(error.value)
    for _ in range(2):
        newer, older, requests = promotion.rollback(project.root, project.registry, "complaints", to=1)
        assert (newer, older, sorted(requests)) == (3, 1, ["A", "B"])
    assert project.registry.aliases() == {PRODUCTION: 1}


def test_vanilla_cannot_be_rolled_back(project):
    project.add("A", PEOPLE[1])
    project.plan()
    with pytest.raises(RequestError) as error:
        promotion.rollback(project.root, project.registry, "complaints")
    assert "version 1" in str(error.value) and "vanilla" in str(error.value)


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_command_killed_at_any_step_ends_the_same_when_repeated(project, monkeypatch, command, tmp_path):
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    project.params = params_with()
    project.add("B", PEOPLE[2])
    project.add("C", PEOPLE[3])
    run = project.plan()
    project.accept(run, project.judge(run))
    start = promotion.read_json(project.root.parent / promotion.JOURNAL)
    aliases, states = project.registry.aliases(), read_states(project.root)

    def run_command():
        if command == "promote":
            return promotion.promote(project.root, project.registry)
        return promotion.rollback(project.root, project.registry, "complaints")

    def restore():
        promotion.write_json(project.root.parent / promotion.JOURNAL, start)
        for alias, number in aliases.items():
            project.registry.set_alias(alias, number)
        for request, state in states.items():
            promotion.write_state(project.root, request, state)

    result, expected = run_command(), end_state(project)
    steps = [(Registry, "set_alias"), (Registry, "delete_alias")]
    steps += [(promotion, "write_state"), (promotion, "write_json")]
    interruptions = 0
    for place, name in steps:
        for skipped in range(2):
            restore()
            original, calls = getattr(place, name), []

            def interrupted(*args, original=original, calls=calls, skipped=skipped, **kwargs):
                calls.append(1)
                if len(calls) > skipped:
                    raise KeyboardInterrupt
                return original(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(place, name, interrupted)
                try:
                    run_command()
                except KeyboardInterrupt:
                    interruptions += 1
            assert run_command() == result, (name, skipped)
            assert end_state(project) == expected, (name, skipped)
    assert interruptions >= 5


def test_a_candidate_made_from_another_version_is_not_promoted(project):
    project.forget("A", PEOPLE[1])
    promotion.promote(project.root, project.registry)
    project.forget("B", PEOPLE[2])
    project.registry.set_alias(PRODUCTION, 1)
    with pytest.raises(RequestError) as error:
        promotion.promote(project.root, project.registry)
    assert "candidate 3" in str(error.value) and "version 2" in str(error.value)


def test_a_promotion_concerns_only_requests_of_its_own_weights(project):
    """Another registered model may have a version of the same number."""
    project.forget("A", PEOPLE[1])
    project.params = params_with(registered_model="another")
    project.add("B", PEOPLE[2])
    promotion.withdraw(project.root, "B", "postponed")
    promotion.retry(project.root, "B")
    run = project.plan()
    assert list(run.batch) == ["A", "B"]
    project.params = params_with()
    assert promotion.promote(project.root, project.registry) == (2, ["A"])
    project.params = params_with(registered_model="another")
    overview = read_overview(project.root, project.registry)
    assert overview.states["A"].status == "needs-attention"


def test_an_invalid_request_is_withdrawn_and_another_may_name_its_people(project):
    project.add("A", *PEOPLE[:2]).write_text("subjects: [")
    project.add("B", PEOPLE[1])
    assert "A" in read_overview(project.root).problems
    promotion.withdraw(project.root, "A", "sent twice")
    overview = read_overview(project.root)
    assert overview.problems == {} and overview.states["A"].reasons == ["sent twice"]
    assert list(overview.pending) == ["B"]
    for name in ("A", "C"):
        with pytest.raises(RequestError) as error:
            promotion.withdraw(project.root, name, "again")
        assert f"request {name}" in str(error.value)
    promotion.retry(project.root, "A")
    assert "A" in read_overview(project.root).problems


def test_a_path_is_no_request(project):
    project.add("A", PEOPLE[1])
    before = sorted(project.root.parent.rglob("*"))
    for name in ("../requests/A", "../../params", "/A", "A.yaml", ""):
        for command in (promotion.confirm, promotion.withdraw):
            with pytest.raises(RequestError) as error:
                command(project.root, name, "a test")
            assert f"request {name} is unknown" in str(error.value)
        with pytest.raises(RequestError):
            promotion.retry(project.root, name)
    assert sorted(project.root.parent.rglob("*")) == before


def test_a_request_that_a_model_carries_out_is_not_withdrawn(project):
    project.forget("A", PEOPLE[1])
    with pytest.raises(RequestError) as error:
        promotion.withdraw(project.root, "A", "changed their mind")
    assert "candidate" in str(error.value)
