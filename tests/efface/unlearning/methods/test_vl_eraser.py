"""VL-Eraser: the retained span keeps its outputs; the student learns, is subtracted, and is gone."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import ModelError
from efface.models.lora import Lora, add_lora
from efface.neurons.retained import decoder_mlps, measure_retained, span_of
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.method import Batch, Job
from efface.unlearning.methods import vl_eraser
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.unlearn import unlearn
from tests.efface.neurons.test_retained import slow_values
from tests.efface.unlearning.runs import interrupted, weights

RANK = 4


def run(model, processor, forget, retain, *, statistic=None, checkpoints=None, **values):
    values = {"rank": RANK, "energy": 1.0, "steps": 6, "learning_rate": 1e-2} | values
    return unlearn(
        model,
        processor,
        method="vl_eraser",
        forget=forget,
        retain=retain,
        statistic=statistic,
        settings=METHODS["vl_eraser"].settings(**values),
        config=TrainingConfig(batch_size=2, checkpoint_every=2),
        checkpoints=checkpoints,
    )


def test_outputs_on_the_retained_span_are_unchanged_and_those_of_the_forgotten_are_not(
    model, processor, pictured, written
):
    forget, retain = pictured[:2], [*pictured[2:8], *written[2:8]]
    statistic = measure_retained(model, processor, retain, batch_size=4)
    start = copy.deepcopy(model)
    run(model, processor, forget, retain)
    generator = torch.Generator().manual_seed(0)
    for mlp in decoder_mlps(model):
        before, after = (m.get_submodule(mlp.down) for m in (start, model))
        rows = statistic.span[mlp.name]
        inside = torch.randn(5, len(rows), generator=generator) @ rows
        scale = before(inside).abs().max().item()
        assert torch.allclose(after(inside), before(inside), atol=1e-5 * scale, rtol=0)
        # The pooled inputs of the retain samples themselves, by the slow way.
        pooled = slow_values(start, processor, retain[0], mlp)[1].mean(dim=0).float()
        assert torch.allclose(after(pooled), before(pooled), atol=1e-5 * scale, rtol=0)
        own = slow_values(start, processor, forget[0], mlp)[0].mean(dim=0).float()
        assert not torch.allclose(after(own), before(own), atol=1e-2 * scale, rtol=0)
        change = torch.linalg.matrix_rank(after.weight - before.weight, rtol=1e-4)
        assert change <= RANK


def test_nothing_but_the_down_projections_changes_and_no_student_stays(model, processor, pictured):
    before, plain = weights(model), copy.deepcopy(model)
    run(model, processor, pictured[:2], pictured[2:])
    after = weights(model)
    assert after.keys() == before.keys() and vl_eraser.students_of(model) == []
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{mlp.down}.weight" for mlp in decoder_mlps(model)}
    assert all(p.requires_grad for p in model.parameters())
    plain.load_state_dict(model.state_dict())
    batch = Encoder(processor, pictured[:2]).batch([0, 1])
    with torch.no_grad():
        assert torch.equal(nll(model, batch), nll(plain, batch))


def test_the_loss_is_the_slow_one(model, processor, pictured):
    settings = METHODS["vl_eraser"].settings(rank=RANK, energy=1.0, similarity_weight=0.3)
    mlps = decoder_mlps(model)
    statistic = measure_retained(model, processor, pictured[3:], batch_size=4)
    job = Job(model, processor, pictured[:2], [], settings, TrainingConfig(), lambda *_: None)
    encoder, start = Encoder(processor, pictured[:2]), copy.deepcopy(model)
    batch = encoder.batch([0, 1])
    with vl_eraser.students(job, mlps, statistic) as students:
        values = vl_eraser.forget_inputs(model, batch, settings)
        with torch.no_grad():
            for student in students:
                student.b.add_(0.1 * torch.randn_like(student.b))
        loss = vl_eraser.forget_loss(model, Batch(batch, values), settings).loss
    cosines = []
    for mlp, student in zip(mlps, students, strict=True):
        weight = start.get_submodule(mlp.down).weight.double()
        span = span_of(statistic.span[mlp.name], 1.0).double()
        off = torch.eye(mlp.width).double() - span.T @ span
        replaced = student.b.double() @ student.a.double() @ off
        for sample in pictured[:2]:
            for part in slow_values(start, processor, sample, mlp):
                h = part.mean(dim=0)
                cosines.append(torch.cosine_similarity(weight @ h, replaced @ h, dim=0))
        with torch.no_grad():
            model.get_submodule(mlp.down).weight.copy_(replaced)
    expected = 0.3 * (1 - torch.stack(cosines).mean()) + 0.7 * nll(model, batch).double()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_training_brings_the_student_to_the_forget_answers(model, processor, pictured):
    result = run(model, processor, pictured[:2], pictured[2:], steps=40, similarity_weight=0.0)
    assert result.history[-1]["forget_loss"] < result.history[0]["forget_loss"] - 0.5


def test_it_resumes_to_the_same_weights(model, processor, pictured, tmp_path):
    whole, broken = copy.deepcopy(model), copy.deepcopy(model)
    run(whole, processor, pictured[:2], pictured[2:])
    with pytest.raises(KeyboardInterrupt):
        run(broken, processor, pictured[:2], pictured[2:], checkpoints=interrupted(tmp_path / "checkpoint"))
    again = copy.deepcopy(model)
    result = run(
        again,
        processor,
        pictured[:2],
        pictured[2:],
        checkpoints=Checkpoints(tmp_path / "checkpoint", key="k"),
    )
    assert result.steps == 6
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(again).items())


def test_bad_input_before_training(model, processor, pictured, written):
    before = weights(model)
    statistic = measure_retained(model, processor, [*pictured, *written], batch_size=4)
    left = min(len(rows[0]) - len(span_of(rows, 1.0)) for rows in statistic.span.values())
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured[:2], [], statistic=statistic, rank=left + 1)
    assert f"rank is {left + 1}" in str(error.value) and str(left) in str(error.value)
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured[:2], [])
    assert "retain is empty" in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    add_lora(model, Lora(2, 2.0), seed=0)
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured[:2], pictured[2:])
    assert "down_proj" in str(error.value)
