"""A soft prompt lowers the loss it is optimised for, leaves the model alone, and budget 0 has none."""

import copy

import pytest
import torch

from efface.attacks import UnavailableAttack
from efface.attacks.soft_prompt import SoftPrompt, optimise, unused_word
from efface.encoding import Encoder, collate, encode_prompts
from efface.encoding.answers import nll
from efface.encoding.forward import forward
from efface.evaluation.scoring import score
from tests.efface.conftest import sample

SETTINGS = {"length": 4, "learning_rate": 0.3, "batch_size": 4, "seed": 0}


def test_vectors_take_the_place_of_the_word_and_only_there(model, processor):
    rows = [sample(0), sample(1, pictured=False)]
    word, token = unused_word(processor, rows, 4)
    table = model.get_input_embeddings().weight.detach()
    other = processor.tokenizer.convert_tokens_to_ids("like")
    prompt = SoftPrompt(word, token, table[other].repeat(4, 1))
    literal = [row.question + " like" * 4 for row in rows]
    for row, question, replaced in zip(rows, literal, prompt.put_to(rows), strict=True):
        expected = forward(model, collate(encode_prompts(processor, [question], [row.images]), 0)).logits
        with prompt.active(model):
            batch = collate(encode_prompts(processor, [replaced.question], [row.images]), 0)
            assert torch.allclose(forward(model, batch).logits, expected, atol=1e-5)
            longer = table.new_tensor([[token] * 5], dtype=torch.long)  # the fifth is in an answer
            assert torch.equal(model.get_input_embeddings()(longer)[0], table[[other] * 4 + [token]])
            single = table.new_tensor([[token, other]], dtype=torch.long)  # one place is another use
            assert torch.equal(model.get_input_embeddings()(single)[0], table[[token, other]])
    assert not model.get_input_embeddings()._forward_hooks


def test_more_steps_lower_the_loss_and_the_weights_stay(model, processor):
    facts = [sample(i) for i in range(4)]
    before = copy.deepcopy(model.state_dict())
    word, losses = unused_word(processor, facts, 4), {}
    for budget, prompt in optimise(model, processor, facts, word=word, budgets=[0, 5, 40], **SETTINGS):
        with prompt.active(model), torch.no_grad():
            losses[budget] = float(nll(model, Encoder(processor, prompt.put_to(facts)).batch(range(4))))
            scores = score(model, processor, prompt.put_to(facts), batch_size=4, max_new_tokens=4)
        # Scoring, which shares prompts among answers, sees the vectors as well.
        assert scores["nll_gold"].mean() == pytest.approx(losses[budget], rel=1e-3)
    assert losses[0] > losses[5] > losses[40]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_vocabulary_without_a_free_word_is_named(processor):
    words = [w for w in processor.tokenizer.get_vocab() if w.isalpha()]
    with pytest.raises(UnavailableAttack) as error:
        unused_word(processor, [sample(0, question=" ".join(words))], 2)
    assert "vocabulary" in str(error.value)
