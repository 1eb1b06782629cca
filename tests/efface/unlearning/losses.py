"""Losses of all methods on small batches, for the tests of losses."""

from __future__ import annotations

import copy

import torch

from efface.encoding import collate, encode
from efface.unlearning import METHODS
from efface.unlearning.method import Batch

SETTINGS = {
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 2.5, "delta": 0.2},
    "idk_dpo": {"beta": 0.1},
    "undial": {"beta": 3.0},
    "rmu": {"layer": 1, "scale": 2.0},
    "mmunlearner": {"variant": "paper"},
    "vgid": {"instruction": "Which colour does red?"},
    "pava": {
        "layers": 1,
        "questions": ["Which colour?", "Does red like green?", "this person", "blue and white"],
    },
    "vl_eraser": {"rank": 2, "energy": 0.9},
    "mip_editor": {"layer": 1, "neurons_per_layer": 2},
    "kvw": {"gamma": 0.5},
    "system_prompt": {"instruction": "Which colour does red?"},
}
TRAINED = [name for name in METHODS if METHODS[name].edit is None]
LOSSES = [
    (name, side)
    for name in TRAINED
    for side in ("forget", "retain")
    if getattr(METHODS[name], f"{side}_loss") is not None
]


def settings_of(method):
    return method.settings(**SETTINGS.get(method.name, {}))


def moved(model, by=0.3):
    """A model near the given one: the reference of every comparison with a reference."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(by * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
    return copied


def batch_of(processor, method, side, samples, reference):
    """A batch with everything the method's loss reads, measured on the reference model."""
    quantity = getattr(method, f"{side}_reference")

    def measured(answered):
        inputs = collate(encode(processor, answered), processor.tokenizer.pad_token_id)
        if quantity is None:
            return Batch(inputs)
        with torch.no_grad():
            return Batch(inputs, quantity(reference, inputs, settings_of(method)))

    batch = measured(samples)
    alternative = None
    if method.alternatives is not None and side == "forget":
        alternative = measured(method.alternatives(samples, settings_of(method), 0))
    return Batch(batch.inputs, batch.reference_values, alternative)


def lengthened(batch, extra, *, fill, attended):
    """The batch with more positions on the right: padding, or attended tokens without labels."""

    def longer(inputs):
        changed = dict(inputs)
        for key, value in (("input_ids", fill), ("attention_mask", int(attended)), ("labels", -100)):
            changed[key] = torch.nn.functional.pad(inputs[key], (0, extra), value=value)
        return changed

    alternative = batch.alternative and Batch(
        longer(batch.alternative.inputs), batch.alternative.reference_values
    )
    return Batch(longer(batch.inputs), batch.reference_values, alternative, batch.seed)


def loss_of(model, method, side, batch):
    return getattr(method, f"{side}_loss")(model, batch, settings_of(method))
