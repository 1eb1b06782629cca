"""A benchmark's own table beside the report's."""

import numpy as np
import pytest

from efface.evaluation.benchmarks import view_of
from efface.report.published import published
from tests.study_results import SKILL, _prepared, score_table


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    samples = _prepared(tmp_path_factory.mktemp("made") / "prepared", 12, 4, np.random.default_rng(0))
    return {
        name: score_table(name, samples, SKILL[name], np.random.default_rng(1))
        for name in ("base", "vanilla", "retrained", "npo")
    }


def test_every_published_number_stands_in_its_models_column(tables):
    table = published(tables, "mllmu")
    assert table.models == ["base", "vanilla", "retrained", "npo"] and table.refused == []
    rows = {row.label: row.cells for row in table.rows}
    for column, model in enumerate(table.models):
        view = view_of(tables[model], "mllmu")["tables"]
        cell = view["forget"]["cloze"]["multimodal"]["accuracy_contains"]
        assert rows["forget · cloze · multimodal · accuracy_contains"][column] == (cell["value"], cell["n"])
    assert len(rows) == len(table.rows) > 40


def test_a_number_that_one_model_lacks_is_not_available_and_no_zero(tables):
    fewer = tables["npo"][tables["npo"]["task"] != "cloze"]
    rows = {row.label: row.cells for row in published({**tables, "npo": fewer}, "mllmu").rows}
    assert rows["forget · cloze · text · accuracy_strict"][3] is None
    assert rows["forget · cloze · text · accuracy_strict"][1] is not None


def test_what_vanilla_never_learnt_has_no_published_number(tables):
    """Base in the place of vanilla by name: there is nothing to forget, so nothing is shown for any model."""
    vanilla, base = tables["vanilla"], tables["base"]
    by_name = (vanilla["modality"] == "text") & (vanilla["set"] == "forget")
    mixed = vanilla.copy()
    mixed.loc[by_name, "token_logprobs"] = base.loc[by_name, "token_logprobs"]
    table = published({**tables, "vanilla": mixed}, "mllmu")
    assert len(table.refused) == 1 and table.refused[0].startswith("forget / text")
    labels = [row.label for row in table.rows]
    assert not [label for label in labels if label.startswith("forget") and "text" in label]
    assert [label for label in labels if label.startswith("forget")]


def test_the_embedded_benchmark_publishes_nothing(tables):
    assert published(tables, "avatars") is None
