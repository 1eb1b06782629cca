"""A study of real stages by real DVC and Prefect: nothing twice, and a failed cell takes no other with it."""

import json
import re

import pytest

from tests.flows.test_whole_runs import Copy, make_copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # some forty processes, one after the other

STUDY = {
    r"^  seeds: \[0, 1, 2\]": "  seeds: [0, 1]",
    r"^  methods: null .*": "  methods: [npo]",
    r"^  run: \[relearn.*": "  run: [cross_modal]",
    r"^    npo: \{learning_rate: \*rates\}": "    npo: {learning_rate: [1.0e-6, 4.0e-5]}",
}
WORLD, CELL = "seed {}, forget 0.1: yardsticks", "seed {}, forget 0.1: npo, learning_rate {}"
RATES = ("1e-06", "4e-05")


def outcomes(output: str) -> dict[str, str]:
    found = re.findall(r"^│ (seed .+?) +│ (cached|restored|ran|failed|not run) +│", output, re.MULTILINE)
    return dict(found)


@pytest.fixture
def project(tmp_path, server) -> Copy:
    copy = make_copy(tmp_path / "project")
    copy.environment["PREFECT_API_URL"] = server.url
    for pattern, text in STUDY.items():
        copy.edit("params.yaml", pattern, text)
    return copy


def test_a_study_runs_every_cell_once_and_the_others_although_one_fails(project):
    """Two settings on the first seed; the better one on the second, where it fails at first."""
    for rate in RATES:
        in_the_way = project.folder / f".study/seed-1/forget-0.1/npo+learning_rate={rate}/data/models"
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("a file where a folder should be")
    first = outcomes(project.run("flows.study", good=False, seconds=600))
    assert first.items() >= {WORLD.format(0): "ran", WORLD.format(1): "ran"}.items()
    assert [first[CELL.format(0, rate)] for rate in RATES] == ["ran", "ran"]
    (failed,) = [name for name, outcome in first.items() if outcome == "failed"]
    assert failed in [CELL.format(1, rate) for rate in RATES], "one of them was chosen"
    results = json.loads(project.read("data/study/results.json"))
    lines = {line["model"]: line for line in results["lines"]}
    assert lines["vanilla"]["seeds"] == [0, 1]
    assert (lines["npo"]["seeds"], lines["npo"]["tried"]) == ([0], 2)
    assert failed.endswith(lines["npo"]["variant"])
    assert failed in project.read("data/study/index.html"), "the page says what is missing"
    assert {"no attack, gap", "cross_modal, gap"} <= lines["npo"]["numbers"].keys()

    for rate in RATES:
        (project.folder / f".study/seed-1/forget-0.1/npo+learning_rate={rate}/data/models").unlink()
    second = outcomes(project.run("flows.study"))
    once = dict.fromkeys(first, "cached")
    assert second == {**once, failed: "ran", f"{failed}, attacked": "ran"}
    results = json.loads(project.read("data/study/results.json"))
    assert {line["model"]: line["seeds"] for line in results["lines"]}["npo"] == [0, 1]
    # What the study's yardsticks made, the pipeline does not make again.
    assert "Running stage" not in project.repro("evaluate@vanilla")
