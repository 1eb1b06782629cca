"""A study of real stages by real DVC and Prefect: nothing twice, and a failed cell takes no other with it."""

import json
import re

import pytest

from tests.flows.test_whole_runs import Copy, make_copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # some forty processes, one after the other

STUDY = {
    r"^  seeds: \[0, 1, 2\]": "  seeds: [0, 1]",
    r"^  methods: null .*": "  methods: [npo]",
}
WORLD, CELL = "seed {}, forget 0.1: yardsticks", "seed {}, forget 0.1: npo"


def outcomes(output: str) -> dict[str, str]:
    found = re.findall(r"^│ (seed .+?) +│ (cached|restored|ran|failed|not run) +│", output, re.MULTILINE)
    return dict(found)


@pytest.fixture
def project(tmp_path) -> Copy:
    copy = make_copy(tmp_path / "project")
    for pattern, text in STUDY.items():
        copy.edit("params.yaml", pattern, text)
    return copy


def test_a_study_runs_every_cell_once_and_the_others_although_one_fails(project):
    in_the_way = project.folder / ".study" / "seed-1" / "forget-0.1" / "npo" / "data" / "models"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder should be")
    first = project.run("flows.study", good=False, seconds=600)
    assert outcomes(first) == {
        WORLD.format(0): "ran",
        CELL.format(0): "ran",
        WORLD.format(1): "ran",
        CELL.format(1): "failed",
    }
    results = json.loads(project.read("data/study/results.json"))
    lines = {line["model"]: line for line in results["lines"]}
    assert lines["vanilla"]["seeds"] == [0, 1] and lines["npo"]["seeds"] == [0]
    assert CELL.format(1) in project.read("data/study/index.html"), "the page says what is missing"

    in_the_way.unlink()
    second = project.run("flows.study")
    assert outcomes(second) == {
        WORLD.format(0): "cached",
        CELL.format(0): "cached",
        WORLD.format(1): "cached",
        CELL.format(1): "ran",
    }
    results = json.loads(project.read("data/study/results.json"))
    assert {line["model"]: line["seeds"] for line in results["lines"]}["npo"] == [0, 1]
    # What a cell of the study made, the pipeline does not make again.
    assert "Running stage" not in project.repro("evaluate@npo")
