"""References cost no second model: cached ones and those of a switched-off adapter give the same results."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from efface.encoding import Encoder, collate, encode
from efface.errors import ArtifactError
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS, unlearn
from efface.unlearning.quantities import answer_distributions, answer_totals, hidden_states
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import LoopConfig
from efface.unlearning.training.precision import Precision
from efface.unlearning.training.processes import Processes
from efface.unlearning.training.references import InMemory, OnDisk, Question
from tests.efface.unlearning.losses import settings_of
from tests.efface.unlearning.test_methods import slow_log_prob

COMPARING = ["npo", "kl_min", "idk_dpo", "undial", "rmu"]
LORA = Lora(rank=4, alpha=8.0, dropout=0.1, components=("language", "projector", "vision"))


def question(model, encoder, quantity=answer_totals, settings=None):
    precision = Precision("fp32", torch.device("cpu"), dict(model.named_parameters()))
    return Question(model, encoder, quantity, settings, precision, 2)


def run(model, processor, pictured, written, method, **options):
    config = LoopConfig(learning_rate=2e-3, steps=6, batch_size=2, seed=1)
    return unlearn(
        model,
        processor,
        method=method,
        forget=pictured[:3],
        retain=pictured[3:] + written[3:],
        config=config,
        settings=settings_of(METHODS[method]),
        **options,
    )


def test_every_method_that_compares_is_tested():
    comparing = [n for n in METHODS if METHODS[n].forget_reference or METHODS[n].retain_reference]
    assert sorted(COMPARING) == comparing


def test_references_belong_to_their_samples(model, processor, pictured, written, tmp_path):
    encoder = Encoder(processor, [pictured[0], written[3], pictured[5]])
    expected = [slow_log_prob(model, row) for row in encode(processor, encoder.samples)]
    asked = question(model, encoder)
    for references in (InMemory(asked), OnDisk(asked, tmp_path, Processes())):
        found = references.of([2, 0], encoder.batch([2, 0]))
        assert [float(v) for v in found] == pytest.approx([expected[2], expected[0]], abs=1e-4)


def test_only_what_the_run_draws_is_measured(model, processor, pictured, written, tmp_path):
    """Six steps of two retain samples draw twelve at most, however many people are kept."""
    asked: list[str] = []
    kl_min = METHODS["kl_min"]

    def counting(model, inputs, settings):
        asked.extend(["sample"] * len(inputs["input_ids"]))
        return answer_distributions(model, inputs, settings)

    method = replace(kl_min, name="counted", retain_reference=counting)
    config = LoopConfig(learning_rate=1e-5, steps=2, batch_size=2, seed=1, retain_batches_per_forget_batch=1)
    retain = pictured[3:] + written[3:]
    assert len(retain) > 4
    unlearn(model, processor, method=method, forget=pictured[:3], retain=retain, config=config)
    assert 2 <= len(asked) <= 4


@pytest.mark.parametrize("quantity", [answer_totals, answer_distributions, hidden_states])
def test_a_reference_does_not_depend_on_the_batch(model, processor, pictured, quantity):
    rows = encode(processor, pictured[:4])
    with torch.no_grad():
        together = quantity(
            model, collate(rows, processor.tokenizer.pad_token_id), METHODS["rmu"].settings(layer=1)
        )
        alone = [quantity(model, row, METHODS["rmu"].settings(layer=1))[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32 and torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", COMPARING)
def test_cached_on_disk_or_in_memory_is_all_the_same(model, processor, pictured, written, tmp_path, method):
    on_disk = copy.deepcopy(model)
    run(model, processor, pictured, written, method)
    run(on_disk, processor, pictured, written, method, references=tmp_path)
    assert list(tmp_path.glob("*/*.safetensors"))
    for (name, a), (_, b) in zip(model.named_parameters(), on_disk.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", COMPARING)
def test_with_lora_cached_references_equal_those_of_the_adapter_switched_off(
    model, processor, pictured, written, tmp_path, method
):
    other = copy.deepcopy(model)
    plain = Lora(LORA.rank, LORA.alpha, 0.0, LORA.components)
    live = run(model, processor, pictured, written, method, adapter=add_lora(model, plain, seed=0))
    cached = run(
        other,
        processor,
        pictured,
        written,
        method,
        adapter=add_lora(other, plain, seed=0),
        references=tmp_path,
    )
    for a, b in zip(live.history, cached.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    # A step's first digits can differ where AdamW divides a rounding error by its own size.
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if "k_proj" not in name:
            assert torch.allclose(p, q, atol=1e-5), name
    assert live.history[0] != live.history[-1]


def test_the_cache_is_keyed_by_its_content(model, processor, pictured, written):
    encoder = Encoder(processor, pictured[:2])
    key = question(model, encoder).key()
    assert key == question(copy.deepcopy(model), Encoder(processor, pictured[:2])).key()
    assert key != question(model, Encoder(processor, pictured[1:3])).key()
    assert key != question(model, encoder, answer_distributions).key()
    assert key != question(model, encoder, settings=METHODS["rmu"].settings(layer=1)).key()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert key != question(model, encoder).key()


def test_what_is_there_is_read_and_damage_is_told(model, processor, pictured, tmp_path, monkeypatch):
    asked = question(model, Encoder(processor, pictured[:2]))
    OnDisk(asked, tmp_path, Processes())
    monkeypatch.setattr(Question, "ask", lambda *_: pytest.fail("measured again"))
    OnDisk(asked, tmp_path, Processes())
    file = next(tmp_path.glob("*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="is damaged .*; delete the folder"):
        OnDisk(asked, tmp_path, Processes())


def test_large_references_lie_in_several_files(model, processor, pictured, tmp_path, monkeypatch):
    monkeypatch.setattr("efface.unlearning.training.references._SHARD_BYTES", 500)
    encoder = Encoder(processor, pictured)
    asked = question(model, encoder, answer_distributions)
    references = OnDisk(asked, tmp_path, Processes())
    assert len(list(tmp_path.glob("*/*.safetensors"))) > 2
    order = [5, 0, 7, 2]
    inputs = encoder.batch(order)
    for a, b in zip(references.of(order, inputs), InMemory(asked).of(order, inputs), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_compares_with_the_model_before_the_first_step(
    model, processor, pictured, written, tmp_path
):
    """Also when the references have to be measured again: they come from the model as it is given."""
    import shutil

    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    config = {"learning_rate": 2e-3, "batch_size": 2, "seed": 1, "checkpoint_every": 2}
    call = {
        "method": "npo",
        "forget": pictured[:2],
        "retain": pictured[2:],
        "settings": METHODS["npo"].settings(beta=0.5),
    }
    unlearn(whole, processor, config=LoopConfig(steps=4, **config), checkpoints=checkpoints, **call)
    assert checkpoints.references.is_dir()
    shutil.rmtree(checkpoints.references)
    unlearn(resumed, processor, config=LoopConfig(steps=4, **config), checkpoints=checkpoints, **call)
    first = OnDisk(
        question(model, Encoder(processor, pictured[:2]), settings=METHODS["npo"].settings(beta=0.5)),
        checkpoints.references,
        Processes(),
    )
    assert len(list(checkpoints.references.iterdir())) == 1  # found again under the key of the first model
    assert first.of([0], Encoder(processor, pictured[:2]).batch([0]))
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    checkpoints.remove()
    assert not list(tmp_path.iterdir())
