"""Requests by the real components: DVC, Prefect, MLflow and stages, in a copy of the project."""

import datetime as dt
import json
import re

import pytest

from tests.flows.test_whole_runs import Copy, make_copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # some twenty processes, one after the other

IN_A_YEAR = str(dt.date.today() + dt.timedelta(days=365))
ASKED = ("--reason", "a test", "--legal-basis", "GDPR Art. 17", "--requester", "case 7", "--due", IN_A_YEAR)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Copy:
    """A tiny world with its vanilla model, and gates that nothing passes."""
    copy = make_copy(tmp_path_factory.mktemp("requests") / "project")
    copy.edit("params.yaml", r"^    forget_at_most: 0.35 .*", "    forget_at_most: 1.0")
    copy.edit("params.yaml", r"^    retain_at_least: 0.9 .*", "    retain_at_least: 99.0")
    copy.edit("params.yaml", r"^    utility_at_least: 0.9 .*", "    utility_at_least: 0.0")
    copy.repro("vanilla")
    return copy


def outcome(project: Copy, request: str) -> dict:
    return json.loads(project.read(f"data/requests/state/{request}.json"))


def people(project: Copy) -> list[str]:
    entities = json.loads(project.read("data/prepared/splits.json"))["entities"]
    return [*entities["retain"], *entities["forget"]]


def test_a_request_goes_from_intake_to_certificate_and_back(project):
    first, second, *_ = people(project)
    said = project.run("flows.requests", "add", "--id", "A", "--subject", first, *ASKED)
    assert "data/requests/A.yaml written" in said
    vanilla = project.hashes()["data/models/vanilla"]

    refused = project.run("flows.requests", "run", good=False, seconds=600)
    assert re.search(r"error: request A needs attention: retain \d\.\d+, expected at least 99", refused)
    assert "version 1 stays in production" in refused
    state = outcome(project, "A")
    assert state["status"] == "needs-attention" and state["version"] is None
    assert re.fullmatch(r"retain \d\.\d+, expected at least 99", state["reasons"][0])
    assert not (project.folder / "data/requests/certificates").exists()

    project.edit("params.yaml", r"^    retain_at_least: 99.0", "    retain_at_least: 0.0")
    project.run("flows.requests", "retry", "A")
    accepted = project.run("flows.requests", "run", seconds=600)
    assert "request A: version 2 has forgotten them and is the candidate" in accepted
    assert "Running stage" not in accepted, "what the refused run made is not made again"
    assert outcome(project, "A")["status"] == "candidate"
    assert "version 2 is in production; done: A" in project.run("flows.requests", "promote")

    assert "1 certificates hold" in project.run("flows.requests", "verify")
    where = project.run("flows.requests", "certificate", "A").split()
    certificate = json.loads(project.read(where[-1]))
    assert (certificate["models"]["before"]["version"], certificate["models"]["after"]["version"]) == (1, 2)
    assert first not in project.read(where[-1]) and first not in project.read(where[-2])
    splits = json.loads(project.read(f"{certificate['run']}/data/prepared/splits.json"))
    assert splits["entities"]["forget"] == [first] and second in splits["entities"]["retain"]
    assert project.hashes()["data/models/vanilla"] == vanilla, "the pipeline's own results are as they were"

    shown = project.run("flows.requests", "status")
    assert re.search(r"│ 2 +│ 1 +│ A +│ production", shown) and re.search(r"│ A +│ .* │ done", shown)
    back = project.run("flows.requests", "rollback", "--reason", "complaints")
    assert "version 1 is in production again, 2 is not; these requests need attention: A" in back
    assert outcome(project, "A")["reasons"] == ["rolled back from version 2 to 1: complaints"]
    assert "1 certificates hold" in project.run("flows.requests", "verify")
