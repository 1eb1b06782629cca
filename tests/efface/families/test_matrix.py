"""Every family in every test: one row of docs/reference/models.md per family, one column per test."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from efface.encoding import Encoder, collate, encode, encode_prompts, split
from efface.encoding.answers import answer_log_probs, nll
from efface.errors import DataError, ModelError
from efface.models import anatomy, load_model, save_model, weights_digest
from efface.models.chat_template import add_system_turn
from efface.models.mlps import watch_neurons
from efface.neurons import activation_statistics, zero_neurons
from efface.saliency import fisher_diagonal, saliency_mask
from efface.unlearning import METHODS
from efface.unlearning.unlearn import unlearn
from tests.efface.families.conftest import picture
from tests.efface.test_encoding import with_prompts_read
from tests.efface.unlearning.losses import SETTINGS
from tests.efface.unlearning.runs import options
from tests.models import FAMILIES
from tests.models.google import PALIGEMMA_TEMPLATE

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def logits_of(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def answer_text(processor, sample):
    """Answer and end token as the template writes them, with the spaces of the tokenizer's words."""
    tokenizer = processor.tokenizer
    user = {"role": "user", "content": [{"type": "text", "text": sample.question}]}
    turns = [user, {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}]
    prompt = processor.apply_chat_template([user], add_generation_prompt=True)
    text = processor.apply_chat_template(turns)
    ends = text.startswith(prompt) and text.rstrip() != prompt + sample.answer
    written = text[len(prompt) :].strip() if ends else sample.answer
    if written == sample.answer or processor.chat_template == PALIGEMMA_TEMPLATE:
        written = (
            sample.answer + tokenizer.eos_token
        )  # LLaVA-1.5's writes no end token, PaliGemma's no answer
    return tokenizer.decode(tokenizer(written, add_special_tokens=False)["input_ids"])


def generated(model, prompts, pad):
    """Four tokens after each prompt."""
    batch = collate(prompts, pad, side="left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": pad}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.column("anatomy")
def test_groups_are_disjoint_and_complete_and_every_mlp_is_recognised(family, tiny):
    model, _ = tiny(family)
    parts = anatomy(model)
    names = [name for group in parts.groups.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert all(parts.groups.values())
    # Every layer of both towers has its block.
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    language = [mlp for mlp in parts.mlps if mlp.tower == "language"]
    experts = getattr(config, "num_experts", 1)
    assert len(language) == layers * experts
    assert len({mlp.name for mlp in parts.mlps}) == len(parts.mlps)
    assert {mlp.layer for mlp in language} == set(range(layers))
    vision = [mlp for mlp in parts.mlps if mlp.tower == "vision"]
    assert len(vision) + len(parts.unused) == 3
    assert len(parts.unused) == (1 if family in ("llava", "llava_next") else 0)
    # The projector is what turns the tower's width into the decoder's.
    hidden = model.get_input_embeddings().weight.shape[1]
    shapes = [tuple(model.get_parameter(name).shape) for name in parts.groups["projector"]]
    assert any(hidden in shape and len(shape) == 2 for shape in shapes)
    assert not any(p.rsplit(".", 1)[0] in {m.down for m in parts.mlps} for p in parts.groups["projector"])


@pytest.mark.column("labels")
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_labels_spell_the_answer_and_the_end_token(family, side, tiny, pictured, written):
    _, processor = tiny(family)
    tokenizer = processor.tokenizer
    for samples in (pictured, written):
        batch = collate(encode(processor, samples), tokenizer.pad_token_id, side=side)
        for i, sample in enumerate(samples):
            labelled = batch["labels"][i] != -100
            assert tokenizer.decode(batch["labels"][i][labelled]) == answer_text(processor, sample)
            assert torch.equal(batch["input_ids"][i][labelled], batch["labels"][i][labelled])
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        begin = tokenizer.bos_token_id
        if begin is not None:
            assert ((batch["input_ids"] == begin).sum(dim=1) == 1).all()


@pytest.mark.column("labels")
def test_words_alone_tell_where_the_answer_begins(family, tiny, pictured, written, album):
    """Reading every prompt with its pictures gives the same rows, bit for bit."""
    _, processor = tiny(family)
    for samples in (pictured, written, album):
        rows, expected = encode(processor, samples), with_prompts_read(processor, samples)
        for row, slow in zip(rows, expected, strict=True):
            assert row.keys() == slow.keys()
            assert all(torch.equal(row[key], slow[key]) for key in row)


@pytest.mark.column("batch = singles")
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_gives_the_losses_of_its_samples(family, side, tiny, pictured, written):
    model, processor = tiny(family)
    pad = processor.tokenizer.pad_token_id
    for samples in (pictured, written):
        rows = encode(processor, samples)
        with torch.no_grad():
            alone = torch.cat([answer_log_probs(model, collate([row], pad)).total for row in rows])
            together = answer_log_probs(model, collate(rows, pad, side=side)).total
        assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
        assert (alone.diff().abs() > 1e-3).all()
    swapped = [replace(pictured[0], image_bytes=pictured[i].image_bytes) for i in (0, 1)]
    with torch.no_grad():
        first, second = (
            answer_log_probs(model, Encoder(processor, [sample]).batch([0])).total for sample in swapped
        )
    assert (first - second).abs() > 1e-4  # the picture matters


@pytest.mark.column("mixed batch")
def test_pictures_and_text_in_one_batch(family, tiny, pictured, written):
    model, processor = tiny(family)
    mixed = [written[0], pictured[1], written[2], pictured[3]]
    encoder = Encoder(processor, mixed)
    if family == "mllama":
        with pytest.raises(DataError) as error:
            encoder.batch(range(4))
        assert "cross-attention" in str(error.value)
        pytest.skip("pictures enter by cross-attention: in batches of their own")
    with torch.no_grad():
        together = answer_log_probs(model, encoder.batch(range(4))).total
        alone = torch.cat([answer_log_probs(model, encoder.batch([i])).total for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.column("generation")
def test_a_batch_generates_what_its_prompts_do(family, tiny, pictured, written):
    model, processor = tiny(family)
    pad = processor.tokenizer.pad_token_id
    for samples in (pictured, written):
        prompts = encode_prompts(processor, [s.question for s in samples], [s.image for s in samples])
        assert not any("labels" in prompt for prompt in prompts)
        assert generated(model, prompts, pad) == [generated(model, [prompt], pad)[0] for prompt in prompts]


@pytest.mark.column("several pictures")
@pytest.mark.parametrize("side", ["right", "left"])
def test_samples_of_one_two_and_three_pictures_share_a_batch(family, side, tiny, album):
    model, processor = tiny(family)
    tokenizer = processor.tokenizer
    rows = encode(processor, album)
    batch = collate(rows, tokenizer.pad_token_id, side=side)
    with torch.no_grad():
        alone = torch.cat([answer_log_probs(model, collate([row], 0)).total for row in rows])
        together = answer_log_probs(model, batch).total
        apart = torch.cat([answer_log_probs(model, part).total for part in split(batch, None)])
        turned = replace(album[1], image_bytes=album[1].more_image_bytes[0], more_image_bytes=(picture(1),))
        swapped = answer_log_probs(model, Encoder(processor, [turned]).batch([0])).total
    assert torch.allclose(apart, alone, rtol=1e-5, atol=1e-5)
    if family == "mllama" and not torch.allclose(together, alone, rtol=1e-5, atol=1e-5):
        pytest.skip("words before the first picture see the padding beside fewer pictures")
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert (swapped - alone[1]).abs() > 1e-4  # the order of the pictures matters
    for i, sample in enumerate(album):
        labelled = batch["labels"][i][batch["labels"][i] != -100]
        assert tokenizer.decode(labelled) == answer_text(processor, sample)
    for part, row in zip(split(batch, None), rows, strict=True):
        pictures = {key: value for key, value in row.items() if value.shape != row["input_ids"].shape}
        tokens = {key for key in pictures if key == "cross_attention_mask"}
        assert all(torch.equal(part[key], pictures[key]) for key in pictures.keys() - tokens)


@pytest.mark.column("several pictures")
def test_samples_of_several_pictures_are_measured_one_by_one(family, tiny, album):
    model, processor = tiny(family)
    mlps, encoder = anatomy(model).mlps, Encoder(processor, album)
    names = [f"{mlp.down}.weight" for mlp in mlps if mlp.expert is None][:2]
    one, many = (
        (
            activation_statistics(model, encoder.batches(size), mlps=mlps, active_above=0.01),
            fisher_diagonal(model, encoder.batches(size), parameters=names),
        )
        for size in (1, 3)
    )
    for name, statistics in one[0].items():
        assert torch.allclose(statistics.sum_abs, many[0][name].sum_abs, rtol=1e-4, atol=1e-6), name
    for name, value in one[1].items():
        assert (value - many[1][name]).abs().max() <= 1e-4 * value.max(), name


@pytest.mark.column("several pictures")
def test_samples_of_several_pictures_are_answered_and_unlearned(family, tiny, album, written):
    model, processor = tiny(family)
    pad = processor.tokenizer.pad_token_id
    prompts = encode_prompts(processor, [s.question for s in album], [s.images for s in album])
    assert generated(model, prompts, pad) == [generated(model, [prompt], pad)[0] for prompt in prompts]
    changed = copy.deepcopy(model)
    values = options("grad_diff", steps=1, batch_size=3)
    result = unlearn(changed, processor, method="grad_diff", forget=album, retain=written[:3], **values)
    assert result.steps == 1 and weights_digest(changed) != weights_digest(model)


@pytest.mark.column("system turn")
def test_a_system_turn_stands_before_every_question(family, tiny, pictured, written):
    model, processor = tiny(family)
    changed, words = copy.deepcopy(processor), "You are a helpful system"
    if not add_system_turn(changed, words):
        assert family in ("paligemma", "mllama")
        assert changed.chat_template == processor.chat_template
        reason = "no dialogue" if family == "paligemma" else "none beside a picture"
        pytest.skip(f"the template writes {reason}: a clear error")
    for sample in (pictured[0], written[0]):
        plain, system = (encode(p, [sample])[0] for p in (processor, changed))
        tokenizer = processor.tokenizer
        assert words in tokenizer.decode(system["input_ids"][0])
        labelled = system["labels"][system["labels"] != -100]
        assert tokenizer.decode(labelled) == answer_text(changed, sample)
        begin = tokenizer.bos_token_id
        assert begin is None or int((system["input_ids"] == begin).sum()) == 1
        with torch.no_grad():
            before, after = (answer_log_probs(model, collate([row], 0)).total for row in (plain, system))
        assert (before - after).abs() > 1e-4


@pytest.mark.column("saliency")
def test_the_fisher_diagonal_is_the_mean_of_squared_sample_gradients(family, tiny, pictured, written):
    model, processor = tiny(family)
    names = anatomy(model).maskable
    encoder = Encoder(processor, pictured)
    fisher = fisher_diagonal(model, encoder.batches(4), parameters=names)
    expected = {name: torch.zeros_like(fisher[name]) for name in names}
    for i in range(4):
        model.zero_grad()
        nll(model, encoder.batch([i])).backward()
        for name in names:
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                expected[name] += gradient.square() / 4
    model.zero_grad(set_to_none=True)
    largest = max(float(value.max()) for value in expected.values())
    for name in names:
        # What cancels in exact arithmetic (the biases of keys) is rounding alone.
        scale = max(float(expected[name].max()), 1e-6 * largest)
        assert (fisher[name] - expected[name]).abs().max() <= 1e-4 * scale, name
    preserve = fisher_diagonal(model, Encoder(processor, written).batches(4), parameters=names)
    mask = saliency_mask(fisher, preserve)
    assert mask.keys() == fisher.keys()
    density = sum(int(entry.sum()) for entry in mask.values()) / sum(e.numel() for e in mask.values())
    assert 0.05 < density < 0.95


@pytest.mark.column("MANU")
def test_activation_statistics_do_not_depend_on_the_batch(family, tiny, pictured, written):
    model, processor = tiny(family)
    mlps = anatomy(model).mlps
    for samples in (pictured, written):
        encoder = Encoder(processor, samples)
        one, many = (
            activation_statistics(model, encoder.batches(size), mlps=mlps, active_above=0.01)
            for size in (1, 4)
        )
        assert one.keys() == many.keys()
        assert (len(one) == len(mlps)) == (samples is pictured)
        for name, statistics in one.items():
            assert torch.allclose(statistics.sum_abs, many[name].sum_abs, rtol=1e-4, atol=1e-6), name
            assert statistics.count == 4
    # Text reaches the whole decoder, save cross-attention layers, which only pictures enter; and an expert
    # may get no token.
    silent = [name for name, statistics in one.items() if not statistics.sum_abs.any()]
    assert len([name for name in silent if "experts" not in name]) == (1 if family == "mllama" else 0)


@pytest.mark.column("pruning")
@pytest.mark.parametrize("tower", ["vision", "language"])
def test_zeroed_neurons_equal_activations_forced_to_zero(family, tower, tiny, pictured):
    whole, processor = tiny(family)
    model = copy.deepcopy(whole)
    batch = Encoder(processor, pictured).batch(range(4))
    mlp = next(mlp for mlp in anatomy(model).mlps if mlp.tower == tower)
    units = torch.tensor([0, 5, 17, mlp.width - 1])
    before = logits_of(model, batch)
    handles = forced_to_zero(model, mlp, units)
    forced = logits_of(model, batch)
    for handle in handles:
        handle.remove()
    zero_neurons(model, {mlp.name: units})
    after = logits_of(model, batch)
    real = batch["attention_mask"].bool()
    assert (after - forced)[real].abs().max() <= 1e-6 * forced.abs().max()
    assert (after - before)[real].abs().max() > 1e-5
    neurons = []
    handle = watch_neurons(model, mlp, neurons.append)
    logits_of(model, batch)
    handle.remove()
    assert not neurons[0][..., units].any() and neurons[0].any()
    if mlp.expert is not None:  # the experts' weights lie in the same parameters
        experts = [i for i in range(model.config.get_text_config().num_experts) if i != mlp.expert]
        for name in (mlp.down, *mlp.up):
            assert torch.equal(model.get_parameter(name)[experts], whole.get_parameter(name)[experts])


def forced_to_zero(model, mlp, units):
    """Hooks that replace the units' activations by zeros, without touching a weight."""
    if mlp.expert is None:

        def force(module, args):
            hidden = args[0].clone()
            hidden[..., units] = 0
            return (hidden,)

        return [model.get_submodule(mlp.down).register_forward_pre_hook(force)]
    experts = model.get_submodule(mlp.down.rpartition(".")[0])

    def without(module, args, output):
        hidden, routed, weights = args
        gate, up = nn.functional.linear(hidden, module.gate_up_proj[mlp.expert]).chunk(2, dim=-1)
        values = module.act_fn(gate) * up
        forced = values.clone()
        forced[:, units] = 0
        share = (weights * (routed == mlp.expert)).sum(-1, keepdim=True)
        return output + share * nn.functional.linear(forced - values, module.down_proj[mlp.expert])

    return [experts.register_forward_hook(without)]


@pytest.mark.column("unlearning")
def test_one_step_of_every_method(family, tiny, pictured, written):
    model, processor = tiny(family)
    # Pictures may enter a decoder late: only behind its last layer does a loss reach every tower. Layers of
    # cross-attention are not among the hidden states that transformers gives.
    text = model.config.get_text_config()
    deepest = text.num_hidden_layers - len(getattr(text, "cross_attention_layers", ()))
    for name in METHODS:
        changed = copy.deepcopy(model)
        if name == "pava":  # untrained models may answer with special tokens alone
            changed.get_output_embeddings().weight.data[processor.tokenizer.all_special_ids] = 0
        start = {n: p.detach().clone() for n, p in changed.named_parameters()}
        mask = {n: torch.ones_like(start[n], dtype=torch.bool) for n in anatomy(model).maskable}
        extra = {"layer": deepest} if name == "rmu" else {}
        extra |= {"steps": 1} if METHODS[name].trains else {}
        call = functools.partial(
            unlearn,
            changed,
            processor,
            method=name,
            forget=pictured[:2],
            retain=[pictured[2], written[3]],
            mask=mask if name == "mmunlearner" else None,
            **options(name, **SETTINGS.get(name, {}) | extra),
        )
        plain = ("vl_eraser", "projected_diff", "projected_simnpo", "mip_editor")
        if name in plain and hasattr(text, "num_experts"):
            with pytest.raises(ModelError) as error:
                call()
            assert "stacked experts" in str(error.value)
            continue
        result = call()
        assert result.steps == int(METHODS[name].trains)
        moved = {n for n, p in changed.named_parameters() if not torch.equal(p, start[n])}
        groups = anatomy(model).groups
        if METHODS[name].edit is None:
            assert all(moved & set(groups[group]) for group in groups), name
        elif name != "system_prompt":  # edits of MLPs
            assert moved and moved <= {n for n in start if ".mlp." in n or ".feed_forward." in n}, name


@pytest.mark.column("save, reload")
def test_saved_and_reloaded_gives_the_same_logits(family, tiny, pictured, written, tmp_path):
    model, processor = tiny(family)
    save_model(model, processor, tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu")
    assert type(loaded.model) is type(model)
    assert type(loaded.processor) is type(processor)
    assert weights_digest(loaded.model) == weights_digest(model)
    for samples in (pictured, written):
        before, after = (Encoder(p, samples).batch(range(4)) for p in (processor, loaded.processor))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        # The same weights elsewhere in memory: a product of matrices may differ in its last bit.
        torch.testing.assert_close(
            logits_of(model, before), logits_of(loaded.model, after), rtol=0, atol=1e-5
        )
