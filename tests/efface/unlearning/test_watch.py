"""The forget-retain curve: known means what greedy decoding says, and watching changes no bit of a run."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder
from efface.evaluation import score
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS
from efface.unlearning.finetuning import finetune
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import LoopConfig, Terms, train
from efface.unlearning.training.watch import Watch, known_answers


def watching(processor, pictured, written, every=4):
    sides = {"forget": Encoder(processor, pictured[:3]), "retain": Encoder(processor, written[3:])}
    return Watch(every=every, sides=sides, batch_size=2)


def test_known_by_hand():
    labels = torch.tensor([[-100, -100, 1, 2], [-100, 3, 0, -100], [-100, 3, 0, -100]])
    said = torch.tensor([[9, 1, 2, 9], [3, 0, 9, 9], [3, 1, 9, 9]])  # the token after each place
    logits = torch.nn.functional.one_hot(said, 10).float()
    assert known_answers(logits, labels).tolist() == [True, True, False]


def test_what_counts_as_known_is_what_the_model_says_word_for_word(model, processor, pictured, written):
    asked = [*pictured, *written]
    shares = []
    for _ in range(4):
        table = score(model, processor, asked, batch_size=4, max_new_tokens=12)
        said = (table["generation"] == table["gold"]).mean()
        watch = Watch(every=1, sides={"all": Encoder(processor, asked)}, batch_size=3)
        assert watch.measure(model) == {"all_known": said}
        shares.append(said)
        finetune(model, processor, asked, steps=25, learning_rate=3e-3, batch_size=8, seed=0)
    assert (min(shares) == 0 and any(0 < share < 1 for share in shares)) or len(set(shares)) > 2


@pytest.mark.parametrize("lora", [False, True])
def test_watching_changes_no_bit_and_measures_the_steps_asked_for(
    model, processor, pictured, written, tmp_path, lora
):
    config = LoopConfig(learning_rate=1e-3, steps=10, batch_size=2, checkpoint_every=3)
    runs = {}
    for watched in (False, True):
        own = copy.deepcopy(model)
        adapter = add_lora(own, Lora(2, 4.0, 0.3, ("language",)), seed=0) if lora else None  # draws dropout
        terms = Terms(
            forget=Encoder(processor, pictured[:4]),
            retain=Encoder(processor, written[2:]),
            method=METHODS["grad_diff"],
        )
        watch = watching(processor, pictured, written) if watched else None
        runs[watched] = own, train(own, terms, config, adapter=adapter, watch=watch)
    for (name, a), (_, b) in zip(*(m.named_parameters() for m, _ in runs.values()), strict=True):
        assert torch.equal(a, b), name
    plain, history = runs[False][1].history, runs[True][1].history
    assert [{k: v for k, v in row.items() if not k.endswith("_known")} for row in history] == plain
    assert [row["step"] + 1 for row in history if "forget_known" in row] == [4, 8, 10]
    assert history[-1].keys() - plain[-1].keys() == {"forget_known", "retain_known"}


def test_a_killed_run_keeps_the_points_it_has(model, processor, pictured, written, tmp_path, monkeypatch):
    config = LoopConfig(learning_rate=1e-3, steps=6, batch_size=2, checkpoint_every=2)
    terms = Terms(retain=Encoder(processor, written))
    expected = train(copy.deepcopy(model), terms, config, watch=watching(processor, pictured, written, 2))
    watch, checkpoints = watching(processor, pictured, written, 2), Checkpoints(tmp_path / "run", key="k")
    measured = []

    def dying(self, of):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return whole(self, of)

    whole = Watch.measure
    monkeypatch.setattr(Watch, "measure", dying)
    killed = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        train(killed, terms, config, checkpoints=checkpoints, watch=watch)
    monkeypatch.setattr(Watch, "measure", whole)
    resumed = train(copy.deepcopy(model), terms, config, checkpoints=checkpoints, watch=watch)
    assert resumed.history == expected.history
