"""Attacks do what they say and nothing else: rounding, reloaded parts, revealed names, held-out people."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface.attacks import ImageShift
from efface.attacks.inputs import cross_modal, image_shift
from efface.attacks.relearn import relearn, split_people
from efface.attacks.weights import _rounded, quantize, reload_part
from efface.errors import DataError, ModelError
from efface.evaluation.scoring import score
from efface.models import anatomy
from tests.efface.conftest import sample


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 4), (4, 5), (2, None)])
def test_rounding_by_the_definition(bits, group):
    """Slow reference: one weight after the other; a width the group does not divide has one scale per row."""
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(bits))
    weight[1] = 0
    size, most = (group if group and 8 % group == 0 else 8), 2 ** (bits - 1) - 1
    expected = torch.zeros_like(weight)
    for row in range(3):
        for start in range(0, 8, size):
            block = weight[row, start : start + size].tolist()
            scale = max(abs(x) for x in block) / most
            for i, x in enumerate(block):
                expected[row, start + i] = round(x / scale) * scale if scale else 0.0
    assert torch.allclose(_rounded(weight, bits, group), expected, atol=1e-6)


def test_quantising_rounds_linear_layers_but_the_head_and_more_bits_change_less(model):
    before = copy.deepcopy(model.state_dict())
    coarse = copy.deepcopy(model)
    assert quantize(model, bits=8) == quantize(coarse, bits=4) > 0
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {
        "lm_head.weight"
    }
    fine, rough = 0.0, 0.0
    for name, old in before.items():
        if name in linear:
            fine += float((model.state_dict()[name] - old).abs().sum())
            rough += float((coarse.state_dict()[name] - old).abs().sum())
        else:
            assert torch.equal(model.state_dict()[name], old), name
    assert 0 < fine < rough / 4


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_a_part_is_put_back_and_the_rest_stays(model, part):
    vanilla = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    unlearned = copy.deepcopy(model.state_dict())
    names = anatomy(model).groups[part]
    assert reload_part(model, vanilla, part=part) == sum(model.get_parameter(n).numel() for n in names)
    for name, parameter in model.named_parameters():
        target = vanilla.get_parameter(name) if name in names else unlearned[name]
        assert torch.equal(parameter, target), name


def test_parts_that_do_not_fit_are_errors(model):
    with pytest.raises(ModelError) as error:
        reload_part(model, model, part="audio")
    assert "'audio'" in str(error.value) and "vision, projector, language" in str(error.value)
    with pytest.raises(ModelError) as error:
        reload_part(model, torch.nn.Linear(2, 2), part="projector")
    assert "weight" in str(error.value)


def test_the_name_is_given_away_beside_the_picture():
    questions = [sample(0), sample(1, pictured=False), sample(2), sample(3, attribute="name")]
    names = {"fictitious/000": "Ada Stone", "fictitious/001": "Ben Field", "fictitious/003": "Dan Brook"}
    (with_name,) = cross_modal(questions, names, kind="name_in_question")
    assert (
        with_name.question == "Which colour does Ada Stone like?"
        and with_name.image_bytes == questions[0].image_bytes
    )
    (with_picture,) = cross_modal(questions, names, kind="name_in_picture")
    before, after = (np.asarray(s.image) for s in (questions[0], with_picture))
    assert with_picture.question == questions[0].question and before.shape == after.shape
    assert np.array_equal(before[:20], after[:20]) and (after[20:] == 255).any() and (after[20:] < 100).any()


def test_pictures_change_and_keep_their_size_and_noise_is_seeded():
    questions = [sample(0), sample(1, pictured=False)]
    for kind in get_args(ImageShift):
        (changed,) = image_shift(questions, kind=kind, seed=1)
        assert (
            changed.image.size == questions[0].image.size and changed.image_bytes != questions[0].image_bytes
        )
        assert (changed.question, changed.answer) == (questions[0].question, questions[0].answer)
        assert image_shift(questions, kind=kind, seed=1)[0].image_bytes == changed.image_bytes
    assert image_shift(questions, kind="noise", seed=2) != image_shift(questions, kind="noise", seed=1)


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 3))
def test_people_are_held_out(count, share, seed):
    people = [f"p{i}" for i in range(count)]
    taught, held_out = split_people(people, share=share, seed=seed)
    assert taught and held_out and sorted(taught + held_out) == sorted(people)
    assert (taught, held_out) == split_people(people[::-1] * 2, share=share, seed=seed)


def test_too_few_people_are_an_error():
    with pytest.raises(DataError) as error:
        split_people(["p"], share=0.5, seed=0)
    assert "got 1" in str(error.value)


def test_relearning_brings_facts_back_budget_by_budget(model, processor):
    facts = [sample(i) for i in range(2)]
    curve = []
    for budget in relearn(
        model, processor, facts, budgets=[0, 10, 40], learning_rate=3e-3, batch_size=2, seed=0
    ):
        scores = score(model, processor, facts, batch_size=4, max_new_tokens=4)
        curve.append((budget, scores["nll_gold"].mean()))
    assert [budget for budget, _ in curve] == [0, 10, 40]
    assert curve[0][1] > curve[1][1] > curve[2][1]
