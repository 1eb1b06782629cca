"""VGID: the teacher sees noise and is told to forget; the loss is the divergence from what it says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.unlearning import METHODS
from efface.unlearning.methods.vgid import teacher_samples
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.losses import batch_of, moved
from tests.efface.unlearning.runs import options

SETTINGS = METHODS["vgid"].settings(instruction="Which colour does red?")


def test_the_teacher_sees_noise_and_the_instruction(pictured, written):
    teacher, half = (
        teacher_samples([pictured[1], written[1]], METHODS["vgid"].settings(noise=share), 0)
        for share in (1.0, 0.5)
    )
    own, noisy, mixed = (np.asarray(s.images[0], dtype=float) for s in (pictured[1], teacher[0], half[0]))
    assert noisy.shape == own.shape and abs(np.corrcoef(own.ravel(), noisy.ravel())[0, 1]) < 0.1
    assert np.abs(mixed - (own + noisy) / 2).max() <= 1.0
    assert teacher[1].image_bytes is None
    assert [s.question for s in teacher] == [
        f"You do not know this person. {s.question}" for s in (pictured[1], written[1])
    ]
    assert [s.answer for s in teacher] == [pictured[1].answer, written[1].answer]


def test_the_loss_is_the_slow_divergence(model, processor, pictured):
    reference = moved(model)
    batch = batch_of(processor, METHODS["vgid"], "forget", pictured[:2], reference)
    expected = []
    for sample, teacher in zip(pictured[:2], teacher_samples(pictured[:2], SETTINGS, 0), strict=True):
        rows = [Encoder(processor, [s]).batch([0]) for s in (teacher, sample)]
        probabilities = []
        for who, row in zip((reference, model), rows, strict=True):
            with torch.no_grad():
                logits = who(**{k: v for k, v in row.items() if k != "labels"}).logits[0].double()
            first = int((row["labels"][0] != -100).nonzero()[0])
            probabilities.append(logits[first - 1 : -1].softmax(dim=-1))
        p, q = probabilities
        expected.append((p * (p / q).log()).sum(dim=-1).mean())
    loss = METHODS["vgid"].forget_loss(model, batch, SETTINGS).loss
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_training_brings_the_model_to_its_teacher(model, processor, pictured):
    teacher = copy.deepcopy(model)
    teacher_encoder = Encoder(processor, teacher_samples(pictured[:2], SETTINGS, 0))
    target = nll(teacher, teacher_encoder.batch([0, 1])).item()
    before = nll(model, Encoder(processor, pictured[:2]).batch([0, 1])).item()
    unlearn(
        model,
        processor,
        method="vgid",
        forget=pictured[:2],
        retain=pictured[2:],
        **options("vgid", steps=80, learning_rate=3e-3, retain_weight=0.0, instruction=SETTINGS.instruction),
    )
    after = nll(model, Encoder(processor, pictured[:2]).batch([0, 1])).item()
    assert abs(after - target) < 0.2 * abs(before - target) + 0.02
