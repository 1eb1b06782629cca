"""Whom the stage evaluate asks about, and whose likelihood it adds."""

import copy
from types import SimpleNamespace

import pytest
import torch

from efface.evaluation.scoring import answer_logprobs
from efface.models import save_model
from tasks.evaluate import by_picture, draw_people, score_model
from tasks.runtime.artifacts import RunRecord
from tests.efface.conftest import model, processor, sample  # noqa: F401
from tests.tiny_project import make_root, params_with


def rows(kind, part, people):
    return [
        SimpleNamespace(set=kind, part=part, entity_id=f"{kind}/{i}")
        for i in people
        for _question in range(2)
    ]


def people(subset, kind, part):
    return {sample.entity_id for sample in subset if (sample.set, sample.part) == (kind, part)}


def test_people_for_choosing_settings_are_drawn_apart_from_the_others():
    samples = [
        *rows("retain", "test", range(40)),
        *rows("retain", "validation", range(40, 48)),
        *rows("forget", "test", range(3)),
        *rows("utility", "test", range(100)),
    ]
    subset = draw_people(samples, 5, seed=0)
    assert len(people(subset, "retain", "test")) == len(people(subset, "retain", "validation")) == 5
    assert len(people(subset, "forget", "test")) == 3
    assert len(people(subset, "utility", "test")) == 100, "one stranger a row"
    assert len(subset) == 2 * (5 + 5 + 3 + 100), "all rows of those who are asked about"
    assert [s.entity_id for s in draw_people(samples, 5, seed=0)] == [s.entity_id for s in subset]
    assert people(draw_people(samples, 5, seed=1), "retain", "test") != people(subset, "retain", "test")
    assert draw_people(samples, None, seed=0) == samples


def test_the_base_model_judges_the_answers_where_it_is_among_the_inputs(tmp_path, model, processor):  # noqa: F811
    root, base = make_root(tmp_path, model, processor), copy.deepcopy(model)
    with torch.no_grad():
        base.lm_head.weight.mul_(2)
    save_model(base, processor, root / "models" / "base")
    samples = [sample(i, pictured=pictured) for i in range(3) for pictured in (True, False)]
    inputs, params = {"model": root / "models" / "vanilla"}, params_with("evaluate")
    alone = score_model(params, samples, [], "evaluate", "vanilla", inputs, root, RunRecord())
    assert "base_logprob" not in alone
    inputs["base"] = root / "models" / "base"
    scores = score_model(params, samples, [], "evaluate", "vanilla", inputs, root, RunRecord())
    assert scores["generation"].tolist() == alone["generation"].tolist()
    expected = answer_logprobs(base, processor, samples, scores["generation"].tolist(), batch_size=1)
    assert scores["base_logprob"].tolist() == pytest.approx(expected, abs=1e-5)
    assert None not in expected and expected[0] != pytest.approx(
        answer_logprobs(model, processor, samples[:1], scores["generation"][:1].tolist(), batch_size=1)[0]
    )


def test_facts_without_a_question_for_exact_match_have_a_dash():
    cell = {"multimodal": {"exact_match": {"value": 0.25}}}
    assert by_picture({"forget": {"multimodal": {"accuracy": {"value": 1.0}}}, "retain": cell}) == (
        "forget –, retain 0.25"
    )
    assert by_picture({"retain": {"text": {}}}) == "forget –, retain –"
