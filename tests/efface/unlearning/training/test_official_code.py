"""MMUnlearner's released step against a transcription of its update rule, written out without the loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.models import anatomy
from efface.unlearning.training.batch_source import EpochSampler
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import options


def group_mask(model):
    """Random in the language model, nothing in vision, everything in the projector."""
    generator = torch.Generator().manual_seed(2)
    mask = {}
    for name in anatomy(model).maskable:
        shape = model.get_parameter(name).shape
        group = anatomy(model).group_of(name)
        half = torch.rand(shape, generator=generator) < 0.5
        mask[name] = {"language": half, "projector": torch.ones_like(half), "vision": half & ~half}[group]
    return mask


def transcribed(model, processor, forget, retain, mask, *, iterations, rate, batch, seed, decay):
    """One iteration: every k-th a forget step, then a retain step; AdamW by hand, moments shared."""
    forget_order = EpochSampler(forget, batch_size=batch, seed=seed)
    retain_order = EpochSampler(retain, batch_size=batch, seed=seed + 1)
    forget, retain = Encoder(processor, forget), Encoder(processor, retain)
    every = max(1, retain_order.batches_per_epoch // forget_order.batches_per_epoch)
    parameters = dict(model.named_parameters())
    first = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    second = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    count = dict.fromkeys(parameters, 0)

    def adamw(gradients, now):
        for name, gradient in gradients.items():
            count[name] += 1
            g = gradient.double()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            m = first[name] / (1 - 0.9 ** count[name])
            v = second[name] / (1 - 0.999 ** count[name])
            value = parameters[name].detach().double() * (1 - now * decay) - now * m / (v.sqrt() + 1e-8)
            with torch.no_grad():
                parameters[name].copy_(value)

    def clipped(sign, inputs):
        values = torch.autograd.grad(sign * nll(model, inputs), list(parameters.values()), allow_unused=True)
        gradients = {n: g for n, g in zip(parameters, values, strict=True) if g is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        return {n: g * min(1.0, 1.0 / norm) for n, g in gradients.items()}

    steps = 0
    for iteration in range(iterations):
        now = rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
        epoch, k = divmod(iteration, retain_order.batches_per_epoch)
        if k % every == 0 and steps < (epoch + 1) * forget_order.batches_per_epoch:  # else used up
            gradients = clipped(-1, forget.batch(forget_order.indices_at(steps)))
            adamw({n: g * mask[n] for n, g in gradients.items() if n in mask}, now)
            steps += 1
        adamw(clipped(1, retain.batch(retain_order.indices_at(iteration))), now)
    return steps


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_transcribed_update_rule(model, processor, pictured, written, decay):
    model.double()  # so that only the rule is compared, and not two orders of rounding
    slow, mask = copy.deepcopy(model), group_mask(model)
    forget, retain = pictured[:2], pictured[2:] + written[2:]
    result = unlearn(
        model,
        processor,
        method="mmunlearner",
        forget=forget,
        retain=retain,
        mask=mask,
        **options(
            "mmunlearner", variant="official_code", learning_rate=2e-3, steps=10, seed=3, weight_decay=decay
        ),
    )
    steps = transcribed(
        slow, processor, forget, retain, mask, iterations=10, rate=2e-3, batch=2, seed=3, decay=decay
    )
    for (name, a), (_, b) in zip(model.named_parameters(), slow.named_parameters(), strict=True):
        # Softmax does not see a bias of the keys: its gradient is rounding noise, which AdamW blows up.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(a, b, atol=1e-6, rtol=0), (name, float((a - b).abs().max()))
    forget_steps = [record["step"] for record in result.history if "forget_loss" in record]
    assert steps == len(forget_steps) == 2 and forget_steps == [0, 6]
    assert all("retain_loss" in record for record in result.history)


def test_an_epoch_is_a_pass_over_the_retain_set(model, processor, pictured, written):
    result = unlearn(
        model,
        processor,
        method="mmunlearner",
        forget=pictured[:2],
        retain=pictured[2:] + written[2:],
        **options("mmunlearner", variant="official_code", learning_rate=1e-4, epochs=2),
    )
    assert result.steps == 12  # three batches with pictures and three without, twice


def test_the_two_variants_differ(model, processor, pictured, written):
    models = [copy.deepcopy(model), copy.deepcopy(model)]
    for copied, variant in zip(models, ("paper", "official_code"), strict=True):
        unlearn(
            copied,
            processor,
            method="mmunlearner",
            forget=pictured[:4],
            retain=pictured[4:],
            **options("mmunlearner", variant=variant, steps=2, batch_size=4),
        )
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)


def test_the_forget_set_is_walked_once_per_epoch_as_in_the_released_loop(model, processor, pictured, written):
    """Three forget batches beside five retain batches: a forget step in the first three iterations."""
    result = unlearn(
        model,
        processor,
        method="mmunlearner",
        forget=pictured[:6],
        retain=pictured[6:] + written,
        **options("mmunlearner", variant="official_code", epochs=2),
    )
    assert result.steps == 10
    assert [record["step"] for record in result.history if "forget_loss" in record] == [0, 1, 2, 5, 6, 7]
