"""MMUnlearner's released step against a transcription of its update rule, written out without the loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.models import anatomy
from efface.unlearning import METHODS, unlearn
from efface.unlearning.training.loop import LoopConfig
from efface.unlearning.training.streams import BatchStream


def made_mask(model):
    """Random in the language model, nothing in vision, everything in the projector."""
    generator = torch.Generator().manual_seed(2)
    mask = {}
    for name in anatomy(model).maskable:
        shape = model.get_parameter(name).shape
        group = anatomy(model).group_of(name)
        drawn = torch.rand(shape, generator=generator) < 0.5
        mask[name] = {"language": drawn, "projector": torch.ones_like(drawn), "vision": drawn & ~drawn}[group]
    return mask


def transcribed(model, processor, forget, retain, mask, *, iterations, rate, batch, seed, decay):
    """One iteration: every k-th a forget step, then a retain step; AdamW by hand, moments shared."""
    forget = BatchStream(Encoder(processor, forget), batch_size=batch, seed=seed)
    retain = BatchStream(Encoder(processor, retain), batch_size=batch, seed=seed + 1)
    every = max(1, retain.batches_per_epoch // forget.batches_per_epoch)
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
        found = torch.autograd.grad(sign * nll(model, inputs), list(parameters.values()), allow_unused=True)
        found = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.values()))
        return {n: g * min(1.0, 1.0 / norm) for n, g in found.items()}

    steps = 0
    for iteration in range(iterations):
        now = rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
        if iteration % every == 0:
            gradients = clipped(-1, forget.batch_at(steps))
            adamw({n: g * mask[n] for n, g in gradients.items() if n in mask}, now)
            steps += 1
        adamw(clipped(1, retain.batch_at(iteration)), now)
    return steps


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_transcribed_update_rule(model, processor, pictured, written, decay):
    model.double()  # so that only the rule is compared, and not two orders of rounding
    slow, mask = copy.deepcopy(model), made_mask(model)
    forget, retain = pictured[:2], pictured[2:] + written[2:]
    result = unlearn(
        model,
        processor,
        method="mmunlearner",
        settings=METHODS["mmunlearner"].settings(variant="official_code"),
        forget=forget,
        retain=retain,
        mask=mask,
        config=LoopConfig(learning_rate=2e-3, steps=10, batch_size=2, seed=3, weight_decay=decay),
    )
    steps = transcribed(
        slow, processor, forget, retain, mask, iterations=10, rate=2e-3, batch=2, seed=3, decay=decay
    )
    for (name, a), (_, b) in zip(model.named_parameters(), slow.named_parameters(), strict=True):
        # Softmax does not see a bias of the keys: its gradient is rounding noise, which AdamW blows up.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(a, b, atol=1e-6, rtol=0), (name, float((a - b).abs().max()))
    asked = [record["step"] for record in result.history if "forget_loss" in record]
    assert steps == len(asked) == 2 and asked == [0, 6]
    assert all("retain_loss" in record for record in result.history)


def test_an_epoch_is_a_pass_over_the_retain_set(model, processor, pictured, written):
    result = unlearn(
        model,
        processor,
        method="mmunlearner",
        settings=METHODS["mmunlearner"].settings(variant="official_code"),
        forget=pictured[:2],
        retain=pictured[2:] + written[2:],
        config=LoopConfig(learning_rate=1e-4, epochs=2, batch_size=2),
    )
    assert result.steps == 12  # three batches with pictures and three without, twice


def test_the_two_variants_differ(model, processor, pictured, written):
    models = [copy.deepcopy(model), copy.deepcopy(model)]
    for other, variant in zip(models, ("paper", "official_code"), strict=True):
        unlearn(
            other,
            processor,
            method="mmunlearner",
            settings=METHODS["mmunlearner"].settings(variant=variant),
            forget=pictured[:4],
            retain=pictured[4:],
            config=LoopConfig(learning_rate=1e-3, steps=2, batch_size=4),
        )
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)
