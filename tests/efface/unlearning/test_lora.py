"""LoRA: which layers train, the mask on the factors, the adapter off, and the merged folder."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import ModelError
from efface.models import anatomy, load_model, save_model
from efface.models.lora import Lora, add_lora
from efface.saliency.variants import measure_mask
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import options

LORA = Lora(rank=4, alpha=8.0, dropout=0.0, components=("language",))


def factors(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model, encoder):
    with torch.no_grad():
        return model(**{k: v for k, v in encoder.batch([0, 1]).items() if k != "labels"}).logits


def run(model, processor, pictured, adapter, mask=None, **values):
    return unlearn(
        model,
        processor,
        method="grad_diff",
        forget=pictured[:3],
        retain=pictured[3:],
        adapter=adapter,
        mask=mask,
        **options("grad_diff", **({"learning_rate": 5e-3, "steps": 5} | values)),
    )


@pytest.mark.parametrize("component", ["language", "projector", "vision"])
def test_the_component_switch_says_what_trains(model, component):
    add_lora(model, Lora(2, 4.0, 0.0, (component,)), seed=0)
    part = {"language": "language_model", "projector": "multi_modal_projector", "vision": "vision_tower"}
    names = factors(model)
    assert names and all(part[component] in name and ".lora_" in name for name in names)


def test_factors_begin_as_no_update_and_follow_the_seed(model, processor, pictured):
    encoder, twin, third = Encoder(processor, pictured), copy.deepcopy(model), copy.deepcopy(model)
    before, state = logits(model, encoder), torch.get_rng_state()
    for m, seed in ((model, 0), (twin, 0), (third, 1)):
        add_lora(m, LORA, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(logits(model, encoder), before, atol=1e-6)
    assert all(torch.equal(p, factors(twin)[name]) for name, p in factors(model).items())
    assert any(not torch.equal(p, factors(third)[name]) for name, p in factors(model).items())


def test_only_factors_move_and_switching_them_off_gives_the_model_before(model, processor, pictured):
    encoder = Encoder(processor, pictured)
    before, weights = logits(model, encoder), {n: p.detach().clone() for n, p in model.named_parameters()}
    adapter = add_lora(model, LORA, seed=0)
    run(model, processor, pictured, adapter)
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".")
        present = dict(model.named_parameters())
        after = present.get(name, present.get(f"{layer}.base_layer.{kind}"))
        assert torch.equal(after, weight), name
    assert not torch.allclose(logits(model, encoder), before, atol=1e-2)
    with adapter.disabled():
        assert torch.equal(logits(model, encoder), before)
    assert not torch.allclose(logits(model, encoder), before, atol=1e-2)


def test_the_merged_folder_is_a_plain_model_and_the_adapter_can_be_kept(model, processor, pictured, tmp_path):
    encoder, names = Encoder(processor, pictured), [n for n, _ in model.named_parameters()]
    save_model(model, processor, tmp_path / "start")
    adapter = add_lora(model, LORA, seed=0)
    run(model, processor, pictured, adapter)
    trained = logits(model, encoder)
    adapter.save(tmp_path / "model" / "adapter")
    adapter.merge()
    assert [n for n, _ in model.named_parameters()] == names
    save_model(model, processor, tmp_path / "model")
    loaded = load_model(tmp_path / "model").model
    assert torch.allclose(logits(loaded, encoder), trained, atol=1e-4)
    assert [n for n, _ in loaded.named_parameters()] == names

    from peft import PeftModel

    start = load_model(tmp_path / "start").model
    with_adapter = PeftModel.from_pretrained(start, tmp_path / "model" / "adapter")
    assert torch.allclose(logits(with_adapter, encoder), trained, atol=1e-5)


def test_the_mask_acts_on_the_factors(model, processor, pictured):
    """The same run with and without a mask: outside it the factors stay, inside they move."""
    free = copy.deepcopy(model)
    adapters = [add_lora(m, LORA, seed=0) for m in (model, free)]
    start = {name: p.detach().clone() for name, p in factors(model).items()}
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in start.items()}
    run(model, processor, pictured, adapters[0], mask=mask, batch_size=8, retain_weight=0.0)
    run(free, processor, pictured, adapters[1], batch_size=8, retain_weight=0.0)
    moved = [0, 0]
    for name, p in factors(model).items():
        assert torch.equal(p[~mask[name]], start[name][~mask[name]]), name
        moved[0] += int((p != start[name]).sum())
        moved[1] += int((factors(free)[name] != start[name]).sum())
    assert 0 < moved[0] < 0.4 * moved[1]


def test_a_mask_of_the_weights_themselves_is_an_error(model, processor, pictured):
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    mask = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)}
    adapter = add_lora(model, LORA, seed=0)
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured, adapter, mask=mask)
    assert name in str(error.value) and ".lora_A" in str(error.value)


def test_dropout_follows_the_seed_and_not_what_was_drawn_before(model, processor, pictured):
    twin = copy.deepcopy(model)
    shape = Lora(4, 8.0, 0.5, ("language",))
    first = run(model, processor, pictured, add_lora(model, shape, seed=0))
    torch.rand(7)
    state = torch.get_rng_state()
    again = run(twin, processor, pictured, add_lora(twin, shape, seed=0))
    assert first.history == again.history and torch.equal(torch.get_rng_state(), state)


def test_bad_components(model):
    with pytest.raises(ModelError) as error:
        add_lora(model, Lora(2, 2.0, 0.0, ("audio",)), seed=0)
    assert "components" in str(error.value) and "'audio'" in str(error.value)
    with pytest.raises(ModelError) as error:
        add_lora(model, Lora(2, 2.0, 0.0, ()), seed=0)
    assert "components" in str(error.value)


def test_unlearning_with_factors_raises_the_forget_loss(model, processor, pictured):
    encoder = Encoder(processor, pictured[:3])
    before = nll(model, encoder.batch([0, 1, 2])).item()
    adapter = add_lora(model, LORA, seed=0)
    run(model, processor, pictured, adapter, learning_rate=1e-2, steps=20, retain_weight=0.1)
    adapter.merge()
    assert nll(model, encoder.batch([0, 1, 2])).item() > before + 0.2


def test_the_mask_of_lora_a_follows_that_of_lora_b_and_forgetting_goes_through_both(
    model, processor, pictured, written
):
    """At the start lora_B is zero and gives lora_A no gradient, so no Fisher information can select it."""
    parts = anatomy(model)
    adapter = add_lora(model, LORA, seed=0)
    samples = [
        replace(s, split="forget" if i % 8 < 4 else "retain") for i, s in enumerate(pictured + written)
    ]
    masks, _ = measure_mask(model, processor, samples, parts)
    start = {name: p.detach().clone() for name, p in factors(model).items()}
    run(model, processor, pictured, adapter, mask=masks, retain_weight=0.0)
    moved = {name for name, p in factors(model).items() if not torch.equal(p, start[name])}
    assert any(".lora_A." in name for name in moved) and any(".lora_B." in name for name in moved)
    for name, p in factors(model).items():
        assert torch.equal(p[~masks[name]], start[name][~masks[name]]), name
