"""The forget-retain curve: the shares are those of greedy decoding, and measuring changes no bit of a run."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder
from efface.evaluation.scoring import score
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS
from efface.unlearning.finetuning import finetune
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.evaluation import EvaluationCallback, greedy_matches
from efface.unlearning.training.loop import Terms
from tests.efface.unlearning.runs import fit


def callback(processor, pictured, written, every=4):
    sets = {"forget": Encoder(processor, pictured[:3]), "retain": Encoder(processor, written[3:])}
    return EvaluationCallback(every=every, sets=sets, batch_size=2)


def test_greedy_matches_by_hand():
    labels = torch.tensor([[-100, -100, 1, 2], [-100, 3, 0, -100], [-100, 3, 0, -100]])
    tokens = torch.tensor([[9, 1, 2, 9], [3, 0, 9, 9], [3, 1, 9, 9]])  # the likeliest after each position
    logits = torch.nn.functional.one_hot(tokens, 10).float()
    assert greedy_matches(logits, labels).tolist() == [True, True, False]


def test_the_shares_are_those_of_generated_answers(model, processor, pictured, written):
    samples = [*pictured, *written]
    shares = []
    for _ in range(4):
        table = score(model, processor, samples, batch_size=4, max_new_tokens=12)
        share = (table["generation"] == table["gold"]).mean()
        evaluation = EvaluationCallback(every=1, sets={"all": Encoder(processor, samples)}, batch_size=3)
        assert evaluation(model) == {"all_known": share}
        shares.append(share)
        finetune(model, processor, samples, steps=25, learning_rate=3e-3, batch_size=8, seed=0)
    assert (min(shares) == 0 and any(0 < share < 1 for share in shares)) or len(set(shares)) > 2


@pytest.mark.parametrize("lora", [False, True])
def test_measuring_changes_no_bit_and_happens_every_so_many_steps(model, processor, pictured, written, lora):
    runs = {}
    for measured in (False, True):
        copied = copy.deepcopy(model)
        shape = Lora(2, 4.0, 0.3, ("language",))  # with dropout, which draws random numbers
        adapter = add_lora(copied, shape, seed=0) if lora else None
        terms = Terms(
            forget=Encoder(processor, pictured[:4]),
            retain=Encoder(processor, written[2:]),
            method=METHODS["grad_diff"],
        )
        evaluation = callback(processor, pictured, written) if measured else None
        runs[measured] = copied, fit(copied, terms, steps=10, adapter=adapter, evaluation=evaluation)
    for (name, a), (_, b) in zip(*(m.named_parameters() for m, _ in runs.values()), strict=True):
        assert torch.equal(a, b), name
    plain, history = runs[False][1].history, runs[True][1].history
    assert [{k: v for k, v in row.items() if not k.endswith("_known")} for row in history] == plain
    assert [row["step"] + 1 for row in history if "forget_known" in row] == [4, 8, 10]
    assert history[-1].keys() - plain[-1].keys() == {"forget_known", "retain_known"}


def test_a_resumed_run_keeps_the_points_of_its_checkpoint(
    model, processor, pictured, written, tmp_path, monkeypatch
):
    terms, values = Terms(retain=Encoder(processor, written)), {"steps": 6, "checkpoint_every": 2}
    evaluation = callback(processor, pictured, written, 2)
    expected = fit(copy.deepcopy(model), terms, evaluation=evaluation, **values)
    checkpoints, measure, count = Checkpoints(tmp_path / "run", key="k"), EvaluationCallback.__call__, 0

    def dying(self, model):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return measure(self, model)

    monkeypatch.setattr(EvaluationCallback, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(model), terms, checkpoints=checkpoints, evaluation=evaluation, **values)
    monkeypatch.setattr(EvaluationCallback, "__call__", measure)
    resumed = fit(copy.deepcopy(model), terms, checkpoints=checkpoints, evaluation=evaluation, **values)
    assert resumed.history == expected.history
