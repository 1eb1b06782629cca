"""Losses and methods: definitions by hand, padding and company change nothing, references cost no model."""

from __future__ import annotations

import math

import pytest
import torch

from efface.data.encoding import Encoder, collate, encode
from efface.errors import EffaceError
from efface.models.answers import answer_log_probs, log_probs_of, nll
from efface.unlearning import METHODS, unlearn
from efface.unlearning.loop import LoopConfig, reference_log_probs


def settings_of(method):
    return dict.fromkeys(method.settings, 0.1)


def slow_log_prob(model, row):
    """log p(answer | prompt) by summing softmax entries of an unpadded sample in float64."""
    with torch.no_grad():
        logits = model(**{k: v for k, v in row.items() if k != "labels"}).logits[0].double()
    total = 0.0
    for position, label in enumerate(row["labels"][0].tolist()):
        if label != -100:
            total += float(logits[position - 1].log_softmax(-1)[label])
    return total


def test_answer_log_probs_by_the_definition(model, processor, pictured):
    rows = encode(processor, pictured)
    batch = collate(rows, processor.tokenizer.pad_token_id)
    with torch.no_grad():
        answers = answer_log_probs(model, batch)
    for row, total, tokens in zip(rows, answers.total, answers.tokens, strict=True):
        assert float(total) == pytest.approx(slow_log_prob(model, row), abs=1e-4)
        assert int(tokens) == int((row["labels"] != -100).sum())


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    labels = torch.tensor([[-100, 3, 4], [-100, -100, 1]])
    answers = log_probs_of(torch.zeros(2, 3, 7), labels)
    assert answers.nll.tolist() == pytest.approx([math.log(7)] * 2)
    assert answers.tokens.tolist() == [2, 1]


@pytest.mark.parametrize("name", list(METHODS))
def test_a_batch_costs_the_mean_of_its_samples_and_padding_nothing(model, processor, pictured, name):
    method, pad = METHODS[name], processor.tokenizer.pad_token_id
    rows = encode(processor, pictured[:4])
    reference = torch.tensor([-3.0, -5.0, -2.0, -7.0])
    singles = [
        method.forget_loss(model, row, reference[i : i + 1], settings_of(method)).loss.item()
        for i, row in enumerate(rows)
    ]
    together = method.forget_loss(model, collate(rows, pad), reference, settings_of(method)).loss.item()
    assert together == pytest.approx(sum(singles) / 4, abs=1e-4)
    longer = {**rows[0]}
    for key, fill in (("input_ids", pad), ("attention_mask", 0), ("labels", -100)):
        longer[key] = torch.nn.functional.pad(longer[key], (0, 5), value=fill)
    padded = method.forget_loss(model, longer, reference[:1], settings_of(method)).loss.item()
    assert padded == pytest.approx(singles[0], abs=1e-4)


def test_losses_do_not_see_unlabelled_positions(model, processor, pictured):
    batch = collate(encode(processor, pictured[:2]), processor.tokenizer.pad_token_id)
    short = {**batch, "labels": batch["labels"].clone()}
    first = int((short["labels"][0] != -100).nonzero()[0])
    short["labels"][0, first + 1 :] = -100
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        expected = -float(logits[0, first - 1].log_softmax(-1)[batch["labels"][0, first]])
        assert float(answer_log_probs(model, short).nll[0]) == pytest.approx(expected, abs=1e-4)


def test_npo_at_the_reference_is_two_over_beta_log_two_with_the_gradient_of_ascent(
    model, processor, pictured
):
    method = METHODS["npo"]
    batch = collate(encode(processor, pictured[:3]), processor.tokenizer.pad_token_id)
    with torch.no_grad():
        reference = answer_log_probs(model, batch).total
    weight = model.lm_head.weight
    for beta in (0.1, 1.0):
        loss = method.forget_loss(model, batch, reference, {"beta": beta}).loss
        assert loss.item() == pytest.approx(2 / beta * math.log(2), rel=1e-5)
        gradient = torch.autograd.grad(loss, weight)[0]
        ascent = torch.autograd.grad(answer_log_probs(model, batch).total.mean(), weight)[0]
        assert torch.allclose(gradient, ascent, atol=1e-5)


def test_npo_fades_where_the_answer_is_already_unlikely(model, processor, pictured):
    batch = collate(encode(processor, pictured[:3]), processor.tokenizer.pad_token_id)
    method = METHODS["npo"]
    norms = []
    for shift in (0.0, 50.0):
        with torch.no_grad():
            reference = answer_log_probs(model, batch).total + shift
        loss = method.forget_loss(model, batch, reference, {"beta": 0.1}).loss
        norms.append(float(torch.autograd.grad(loss, model.lm_head.weight)[0].norm()))
    assert norms[1] < 0.05 * norms[0]


def test_npo_needs_its_reference(model, processor, pictured):
    with pytest.raises(ValueError, match="needs the log-probabilities of the forget answers"):
        METHODS["npo"].forget_loss(model, encode(processor, pictured[:1])[0], None, {"beta": 0.1})


def test_reference_log_probs_belong_to_their_samples(model, processor, pictured, written):
    encoder = Encoder(processor, [pictured[0], written[3], pictured[5]])
    found = reference_log_probs(model, encoder, 2)
    expected = [slow_log_prob(model, row) for row in encode(processor, encoder.samples)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_unknown_method_lists_the_known_ones(model, processor, pictured):
    with pytest.raises(
        EffaceError, match="unknown unlearning method 'gd'; known methods: grad_diff, gradient_ascent"
    ):
        METHODS["gd"]


def test_registry_holds_each_file_under_its_own_name():
    assert {"mmunlearner", "grad_diff", "gradient_ascent", "npo"} <= set(METHODS)
    for name in METHODS:
        assert METHODS[name].name == name and METHODS[name].paper.startswith("arXiv:")


@pytest.mark.parametrize("name", ["mmunlearner", "grad_diff", "gradient_ascent", "npo"])
def test_each_method_raises_the_forget_loss(model, processor, pictured, written, name):
    method = METHODS[name]
    before = nll(model, Encoder(processor, pictured[:2]).batch([0, 1])).item()
    config = LoopConfig(learning_rate=3e-3, epochs=10, batch_size=2)
    unlearn(
        model,
        processor,
        method=name,
        forget=pictured[:2],
        retain=pictured[2:] + written[2:],
        config=config,
        settings=settings_of(method),
    )
    assert nll(model, Encoder(processor, pictured[:2]).batch([0, 1])).item() > before + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": []}, "the forget set is empty"),
        ({"retain": []}, "the retain set is empty, and npo needs one"),
        ({"settings": {}}, "npo takes the settings: beta; got: none"),
        ({"settings": {"beta": 1, "gamma": 2}}, "npo takes the settings: beta; got: beta, gamma"),
    ],
)
def test_bad_calls(model, processor, pictured, change, message):
    call = {"method": "npo", "forget": pictured[:2], "retain": pictured[2:], "settings": {"beta": 0.1}}
    with pytest.raises(ValueError, match=message):
        unlearn(model, processor, config=LoopConfig(1e-3, steps=1), **(call | change))
