"""What each variant measures on whom, and that the masks made of it are those of the definition."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.errors import DataError, ModelError
from efface.models import anatomy
from efface.saliency import fisher_diagonal, saliency_mask
from efface.saliency.variants import is_forget, measure_mask, recipe

GROUPS = ("vision", "projector", "language")


def plan_of(model, variant, groups=GROUPS, trained=None):
    parts = anatomy(model)
    return recipe(variant, trained or dict(model.named_parameters()), parts, groups=groups)


def ids(plan, samples):
    return [{s.sample_id for s in samples if m.preserves(s)} for m in plan.measurements]


@pytest.fixture(scope="session")
def facts(pictured, written):
    return [*pictured, *written]


def test_both_forget_the_forget_people_with_their_pictures(facts):
    assert {s.sample_id for s in facts if is_forget(s)} == {"0-image", "1-image"}
    both = {s.sample_id for s in facts if is_forget(s, ("multimodal", "text"))}
    assert both == {"0-image", "1-image", "0-text", "1-text"}


def test_paper_preserves_everything_else_for_every_weight(model, facts):
    plan = plan_of(model, "paper")
    assert [m.parameters for m in plan.measurements] == [anatomy(model).maskable]
    assert ids(plan, facts) == [{s.sample_id for s in facts} - {"0-image", "1-image"}]
    assert (plan.unit, plan.batch_size, plan.smooth_numerator, plan.unmasked) == ("sample", None, False, [])


def test_official_code_preserves_by_tower(model, facts):
    plan = plan_of(model, "official_code")
    seeing, speaking = plan.measurements
    assert {n.split(".")[1] for n in seeing.parameters} == {"vision_tower", "multi_modal_projector"}
    assert {n.split(".")[1] for n in speaking.parameters} == {"language_model"}
    retain = {f"{i}-image" for i in range(2, 8)}
    assert ids(plan, facts) == [retain, retain | {f"{i}-text" for i in range(8)}]
    assert (plan.unit, plan.batch_size, plan.smooth_numerator) == ("batch", 4, True)


def test_official_code_takes_names_and_leaves_all_others_unmasked(model):
    plan = plan_of(model, "official_code", groups=("language",))
    (only,) = plan.measurements
    assert {name.split(".")[-2] for name in only.parameters} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert "lm_head.weight" in plan.unmasked and "model.language_model.norm.weight" in plan.unmasked
    assert "model.multi_modal_projector.linear_1.weight" in plan.unmasked
    assert {*only.parameters, *plan.unmasked} == {name for name, _ in model.named_parameters()}
    assert not set(only.parameters) & set(plan.unmasked)


@pytest.mark.parametrize("group", GROUPS)
def test_paper_masks_only_the_chosen_groups(model, group):
    parts = anatomy(model)
    (only,) = plan_of(model, "paper", groups=(group,)).measurements
    assert set(only.parameters) == set(parts.groups[group]) & set(parts.maskable)


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_no_candidate_among_what_trains_is_an_error(model, variant):
    with pytest.raises(ModelError) as error:
        plan_of(model, variant, trained=["lm_head.weight"])
    assert "lm_head.weight" in str(error.value) and variant in str(error.value)


def slow_official_mask(model, processor, facts, names, preserves):
    """The released rule, written out: squared gradients of batches of 4, eps above and below."""

    def fisher(samples):
        # Pictures and words are never in one batch.
        sums, count = [0.0] * len(names), 0
        for kind in (True, False):
            alike = [s for s in samples if (s.image_bytes is not None) is kind]
            for start in range(0, len(alike), 4):
                batch = Encoder(processor, alike[start : start + 4]).batch(
                    range(len(alike[start : start + 4]))
                )
                weights = [model.get_parameter(name) for name in names]
                gradients = torch.autograd.grad(nll(model, batch), weights, allow_unused=True)
                sums = [
                    total if g is None else total + g**2 for total, g in zip(sums, gradients, strict=True)
                ]
                count += 1
        return [total / count for total in sums]

    top, bottom = fisher([s for s in facts if is_forget(s)]), fisher([s for s in facts if preserves(s)])
    return {n: (t + 1e-15) / (b + 1e-15) >= 1 for n, t, b in zip(names, top, bottom, strict=True)}


def test_official_mask_equals_the_rule_written_out(model, processor, facts):
    plan = plan_of(model, "official_code")
    for measurement in plan.measurements:
        fishers = [
            fisher_diagonal(
                model,
                Encoder(processor, [s for s in facts if belongs(s)]).batches(4),
                parameters=measurement.parameters,
                unit=plan.unit,
            )
            for belongs in (is_forget, measurement.preserves)
        ]
        mask = saliency_mask(*fishers, smooth_numerator=plan.smooth_numerator)
        expected = slow_official_mask(model, processor, facts, measurement.parameters, measurement.preserves)
        for name in measurement.parameters:
            # A ratio within a rounding error of 1 may fall on either side.
            assert (mask[name] != expected[name]).float().mean() <= 1e-3, name


def test_a_weight_no_sample_reaches_is_salient_in_official_code_alone(model, processor, facts):
    # A neuron that nothing reads has no gradient at all.
    down = model.get_parameter("model.language_model.layers.1.mlp.down_proj.weight")
    up = "model.language_model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        down[:, 5] = 0
    masks = {}
    for variant in ("paper", "official_code"):
        plan = plan_of(model, variant, groups=("language",))
        (m,) = plan.measurements
        fishers = [
            fisher_diagonal(
                model,
                Encoder(processor, [s for s in facts if belongs(s)]).batches(4),
                parameters=[up],
                unit=plan.unit,
            )
            for belongs in (is_forget, m.preserves)
        ]
        masks[variant] = saliency_mask(*fishers, smooth_numerator=plan.smooth_numerator)[up]
    assert not masks["paper"][5].any() and masks["official_code"][5].all()
    assert masks["paper"].any() and not masks["official_code"].all()


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=3, target_modules=["q_proj", "up_proj", "fc1", "linear_1", "patch_embedding"])
    wrapped = get_peft_model(model, config)
    with torch.no_grad():  # B starts at zero, which would leave A without a gradient
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return wrapped.eval()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fisher_of_lora_factors_equals_a_loop_over_samples(model, processor, facts, batch_size):
    wrapped = with_lora(model)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    fisher = fisher_diagonal(wrapped, Encoder(processor, facts).batches(batch_size))
    assert fisher.keys() == trained.keys()
    expected = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in trained.items()}
    for batch in Encoder(processor, facts).batches(1):
        gradients = torch.autograd.grad(nll(wrapped, batch), list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                expected[name] += gradient.double() ** 2 / len(facts)
    for name, value in expected.items():
        assert value.any(), name
        assert (fisher[name] - value).abs().max() <= 1e-5 * value.max(), name


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_masks_on_lora_factors_are_keyed_to_what_trains(model, processor, facts, variant):
    parts = anatomy(model)
    wrapped = with_lora(model)
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    plan = recipe(variant, trained, parts, groups=("vision", "language"))
    measured = [name for m in plan.measurements for name in m.parameters]
    projector = [name for name in trained if "projector" in name]
    patches = [name for name in trained if "patch_embedding" in name]
    assert projector and patches
    if variant == "paper":
        assert measured == [name for name in trained if name not in projector] and not plan.unmasked
    else:
        assert plan.unmasked == [name for name in trained if name in projector + patches]
    fishers = [
        fisher_diagonal(wrapped, Encoder(processor, samples).batches(4), parameters=measured)
        for samples in (facts[:2], facts[2:])
    ]
    density = saliency_mask(*fishers).density(parts)
    assert set(density["groups"]) == {"vision", "language"}
    assert (
        {"q_proj", "up_proj", "fc1"}
        <= set(density["kinds"])
        <= {"q_proj", "up_proj", "fc1", "patch_embedding"}
    )
    assert {"vision.0", "vision.1", "language.0", "language.1"} == set(density["layers"])


def measured(model, processor, facts, **options):
    return measure_mask(model, processor, facts, anatomy(model), **options)


@pytest.mark.parametrize("forget", [("multimodal",), ("multimodal", "text")])
def test_the_measured_mask_is_that_of_the_two_fishers(model, processor, facts, forget):
    masks, metadata = measured(model, processor, facts, forget=forget, batch_size=3)
    fishers = [
        fisher_diagonal(
            model,
            Encoder(processor, [s for s in facts if is_forget(s, forget) is inside]).batches(4),
            parameters=anatomy(model).maskable,
        )
        for inside in (True, False)
    ]
    expected = saliency_mask(*fishers)
    assert list(masks) == list(expected)
    for name in expected:
        if not name.endswith("k_proj.bias"):  # without a gradient, so its ratios are of rounding errors
            assert (masks[name] != expected[name]).float().mean() <= 1e-3, name
    assert metadata["thresholds"] == [1.0] and metadata["unmasked"] == []
    assert metadata["density"] == masks.density(anatomy(model))


def test_stability_is_the_agreement_of_the_masks_of_two_halves(model, processor, facts):
    from efface.saliency.mask import kappa

    _, metadata = measured(model, processor, facts, batch_size=3)
    sets = [[s for s in facts if is_forget(s) is inside] for inside in (True, False)]
    halves = [
        saliency_mask(
            *(
                fisher_diagonal(
                    model, Encoder(processor, s[half::2]).batches(4), parameters=anatomy(model).maskable
                )
                for s in sets
            )
        )
        for half in (0, 1)
    ]
    assert metadata["stability"]["kappa"] == pytest.approx(kappa(*halves), abs=0.01)
    shares = [half.density(anatomy(model))["total"] for half in halves]
    assert metadata["stability"]["densities"] == pytest.approx(shares, abs=0.01)


def test_a_single_sample_has_no_halves(model, processor, facts):
    alone = [s for s in facts if s.sample_id != "1-image"]
    assert measured(model, processor, alone)[1]["stability"] is None


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_a_density_fixes_the_share(model, processor, facts, variant):
    _, metadata = measured(model, processor, facts, variant=variant, density=0.25)
    assert metadata["density"]["total"] == pytest.approx(0.25, abs=0.001)
    assert metadata["stability"] is None or metadata["stability"]["densities"] == pytest.approx(
        [0.25, 0.25], abs=0.001
    )
    assert len(metadata["thresholds"]) == (1 if variant == "paper" else 2)


def test_per_group_divides_by_the_samples_with_a_picture(model, processor, facts):
    """6 of 14 preserved samples have a picture: pooled, ratios of vision weights are 14 / 6 times as high."""
    pooled, _ = measured(model, processor, facts, threshold=14 / 6)
    per_group, _ = measured(model, processor, facts, threshold=1.0, normalisation="per_group")
    for name in pooled:
        # The gradient of a key's bias is nothing but rounding: a softmax does not depend on it.
        if "language_model" not in name and "k_proj.bias" not in name:
            assert (pooled[name] != per_group[name]).float().mean() <= 1e-3, name
    plain, _ = measured(model, processor, facts)
    for name in plain:
        if "language_model" in name:
            assert torch.equal(plain[name], per_group[name]), name


@pytest.mark.parametrize(("split", "label"), [("forget", "forget"), ("retain", "preserve")])
def test_an_empty_set_is_an_error(model, processor, facts, split, label):
    with pytest.raises(DataError) as error:
        measured(model, processor, [s for s in facts if s.split != split and s.modality == "multimodal"])
    assert label in str(error.value)


def test_a_threshold_that_selects_nothing_is_an_error(model, processor, facts):
    with pytest.raises(ModelError) as error:
        measured(model, processor, facts, threshold=1e30)
    assert "threshold" in str(error.value) and "1e+30" in str(error.value)


def test_rows_of_a_follow_the_columns_of_b_while_b_is_zero(model, processor, facts):
    from efface.models.lora import Lora, add_lora

    parts = anatomy(model)
    add_lora(model, Lora(rank=4, alpha=8.0), seed=0)
    masks, metadata = measure_mask(model, processor, facts, parts, groups=["language"])
    fishers = [
        fisher_diagonal(model, Encoder(processor, [s for s in facts if is_forget(s) is inside]).batches(4))
        for inside in (True, False)
    ]
    selected = 0
    for name, mask in masks.items():
        if ".lora_A." in name:
            twin = name.replace("lora_A", "lora_B")
            assert not fishers[0][name].any() and not fishers[1][name].any()
            forget, preserve = (fisher[twin].mean(dim=0) for fisher in fishers)
            expected = forget / (preserve + 1e-15) >= 1
            assert torch.equal(mask, expected[:, None].expand_as(mask)), name
            selected += int(mask.sum())
    assert selected and metadata["stability"] is not None


def test_layers_that_no_answer_depends_on_are_in_no_mask(model):
    from dataclasses import replace

    layer = "model.language_model.layers.1"
    parts = replace(anatomy(model), unused=(layer,))
    plan = recipe("official_code", dict(model.named_parameters()), parts, groups=GROUPS)
    names = [name for m in plan.measurements for name in m.parameters] + plan.unmasked
    assert any(name.startswith("model.language_model.layers.0.") for name in names)
    assert not any(name.startswith(f"{layer}.") for name in names)
