"""Probes against closed forms, and on a model that knows a fact without saying it."""

import pytest
import torch

from efface.attacks import UnavailableAttack
from efface.attacks.probe import _last_states, chance, linear_scores, probe, probe_samples
from efface.encoding import collate, encode_prompts
from efface.encoding.forward import forward
from efface.models.anatomy import decoder_of
from tests.efface.conftest import COLOURS, picture, sample

VALUES = {"colour": COLOURS}


def facts(people, answers, **changes):
    rows = []
    for i in people:
        about = {"task": "cloze", "split": "retain", "entity_id": f"fictitious/{i:03d}", "sample_id": str(i)}
        rows.append(sample(i, answer=answers[i % len(answers)], **about | changes))
    return rows


def test_the_linear_probe_is_ridge_regression():
    """Slow reference: gradient descent on the loss that the closed form minimises."""
    generator = torch.Generator().manual_seed(0)
    states, test = torch.randn(20, 3, generator=generator), torch.randn(4, 3, generator=generator)
    classes = torch.arange(20) % 2
    x = (states - states.mean(0)) / states.std(0)
    y = torch.nn.functional.one_hot(classes, 2).float()
    weights = torch.zeros(3, 2, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.01)
    for _ in range(2000):
        optimizer.zero_grad()
        (((x @ weights - (y - y.mean(0))) ** 2).sum() + 20 * 0.5 * (weights**2).sum()).backward()
        optimizer.step()
    expected = (test - states.mean(0)) / states.std(0) @ weights + y.mean(0)
    assert torch.allclose(linear_scores(states, classes, test, 2, penalty=0.5), expected, atol=1e-4)


def test_the_probe_meets_no_person_twice_and_only_values_it_has_learnt():
    train, test = facts(range(2, 8), COLOURS), facts((0, 1), COLOURS, split="forget")
    extra = facts([1], ["violet"], sample_id="new", split="forget")
    learnt, tested, values = probe_samples(train, [*test, *extra])
    assert values == {"colour": sorted(COLOURS)} and tested == test and learnt == train
    assert chance(tested, values) == 1 / 4
    with pytest.raises(ValueError) as error:
        probe_samples([*train, test[0]], test)
    assert test[0].entity_id in str(error.value)
    with pytest.raises(UnavailableAttack) as error:
        probe_samples(train, extra)
    assert "share values" in str(error.value)


def test_states_are_those_of_each_prompt_alone(model, processor):
    rows = facts(range(3), COLOURS)
    rows[1] = sample(1, question="Which colour?")
    together = _last_states(model, processor, rows, layers=5, batch_size=3)
    alone = [_last_states(model, processor, [row], layers=2, batch_size=1) for row in rows]
    assert list(together) == [1, 2]
    for layer, states in together.items():
        assert torch.allclose(states, torch.cat([one[layer] for one in alone]), atol=1e-4)


def test_the_probe_reads_what_the_states_hold_and_the_lens_of_the_last_layer_is_the_model(model, processor):
    """Value and question are one to one, so the states hold the value; the untrained head does not say it."""
    questions = dict(zip(COLOURS, ("Which colour?", "person like", "does this", "like?"), strict=True))
    same = {"task": "cloze", "image": picture(0)}
    train = [
        sample(i, question=questions[c], answer=c, sample_id=f"{i}{c}", **same)
        for i in range(2, 6)
        for c in COLOURS
    ]
    test = [sample(0, question=questions[c], answer=c, sample_id=c, **same) for c in COLOURS]
    with torch.no_grad():  # so that a norm too many, or too few, shows
        decoder_of(model).norm.weight.copy_(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    results = probe(model, processor, train, test, VALUES, layers=1, penalty=0.01, batch_size=4)
    assert list(results) == ["linear, layer 2", "logit lens, layer 2"]
    assert all(results["linear, layer 2"])
    ids = [processor.tokenizer.encode(c, add_special_tokens=False)[-1] for c in COLOURS]
    for row, hit in zip(test, results["logit lens, layer 2"], strict=True):
        batch = collate(encode_prompts(processor, [row.question], [row.images]), 0)
        logits = forward(model, batch).logits[0, -1, ids]
        assert hit == (COLOURS[int(logits.argmax())] == row.answer)
    assert len(probe(model, processor, train, test, VALUES, layers=9, penalty=1.0, batch_size=8)) == 4
