"""PAVA: effects by hand, which weights train, the anchors, and the control of random layers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from efface import sandbox
from efface.encoding import Encoder
from efface.encoding.answers import answer_log_probs, nll
from efface.errors import DataError, ModelError
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.finetuning import finetune
from efface.unlearning.methods import pava
from efface.unlearning.unlearn import unlearn
from tests.efface.conftest import COLOURS, SHAPE, sample
from tests.efface.unlearning.runs import weights

QUESTIONS = ["Which colour does this person like?"]


def run(model, processor, forget, *, adapter=None, **values):
    values = {"layers": 1, "questions": QUESTIONS, "steps": 2, "learning_rate": 1e-2} | values
    return unlearn(
        model,
        processor,
        method="pava",
        forget=forget,
        retain=[],
        adapter=adapter,
        settings=METHODS["pava"].settings(**values),
        config=TrainingConfig(batch_size=2),
    )


def test_the_indirect_effects_are_those_of_a_run_by_hand(model, processor, pictured):
    swapped = [replace(pictured[0], image_bytes=pictured[3].image_bytes), pictured[1]]
    clean, corrupted = (Encoder(processor, versions).batch([0, 1]) for versions in (pictured[:2], swapped))
    modules = pava.mlp_modules(model)
    effects = pava.indirect_effects(model, clean, corrupted, modules)
    token = model.config.image_token_id
    for name, effect in zip(modules, effects, strict=True):
        module, outputs = model.get_submodule(name), []
        with torch.no_grad():
            handle = module.register_forward_hook(
                lambda m, a, output, outputs=outputs: outputs.append(output.clone())
            )
            answer_log_probs(model, clean)
            before = answer_log_probs(model, corrupted).total
            handle.remove()
            mixed = torch.where((clean["input_ids"] == token).unsqueeze(2), outputs[0], outputs[1])
            handle = module.register_forward_hook(lambda m, a, output, mixed=mixed: mixed)
            # The block's inputs in the corrupted run do not depend on its own output.
            restored = answer_log_probs(model, corrupted).total
            handle.remove()
        assert effect.item() == pytest.approx((restored - before).sum().item(), abs=1e-5)
    assert effects.abs().max() > 1e-4
    assert torch.equal(pava.indirect_effects(model, clean, clean, modules), torch.zeros(len(modules)))


@pytest.mark.parametrize("selection", ["traced", "random"])
def test_only_the_selected_mlp_changes(model, processor, pictured, written, selection):
    before = weights(model)
    result = run(model, processor, [*pictured[:2], *written[:2]], selection=selection)
    (layer,) = result.details["layers"]
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    prefix = pava.mlp_modules(model)[layer - 1]
    assert changed == {name for name in before if name.startswith(f"{prefix}.")}
    assert result.steps == 2 and result.details["attribute_samples"] == 2
    assert all(p.requires_grad for p in model.parameters())
    if selection == "traced":
        effects = result.details["indirect_effects"]
        assert effects[layer - 1] == max(effects)


def test_with_lora_only_factors_of_the_selected_mlp_change(model, processor, pictured):
    adapter = add_lora(model, Lora(2, 4.0), seed=0)
    before = weights(model)
    result = run(model, processor, pictured[:2], adapter=adapter)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed and all(f"layers.{result.details['layers'][0] - 1}.mlp." in name for name in changed)
    assert all(".lora_" in name for name in changed)


def test_the_anchors_are_the_models_own_greedy_answers(model, processor, pictured):
    answers = pava.greedy_answers(model, processor, pictured[:3], batch_size=2, max_new_tokens=4)
    for question, answer in zip(pictured[:3], answers, strict=True):
        if answer:
            row = Encoder(processor, [replace(question, answer=answer)]).batch([0])
            with torch.no_grad():
                logits = model(**{key: value for key, value in row.items() if key != "labels"}).logits
            first = int((row["labels"][0] != -100).nonzero()[0])
            assert int(logits[0, first - 1].argmax()) == int(row["labels"][0, first])
    assert any(answers)


def test_other_pictures_are_of_other_people_and_of_the_same_size(pictured):
    others = list(pava.with_other_pictures(pictured[:3], pictured[:3], 0))
    for own, other in zip(pictured[:3], others, strict=True):
        assert other.images[0].size == own.images[0].size
        assert other.images[0].tobytes() in {
            s.images[0].tobytes() for s in pictured[:3] if s.entity_id != own.entity_id
        }
    alone = next(pava.with_other_pictures(pictured[1:2], pictured[1:2], 0))
    assert alone.images[0].size == pictured[1].images[0].size
    assert alone.images[0].tobytes() != pictured[1].images[0].tobytes()


def test_bad_input_before_training(model, processor, pictured, written):
    before = weights(model)
    with pytest.raises(DataError) as error:
        run(model, processor, written[:2])
    assert "picture" in str(error.value)
    with pytest.raises(ModelError) as error:
        run(model, processor, pictured[:2], layers=3)
    assert "layers is 3" in str(error.value) and "1 to 2" in str(error.value)
    with pytest.raises(ValueError) as error:
        run(model, processor, pictured[:2], questions=[])
    assert "questions is []" in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    visual = copy.deepcopy(model)
    adapter = add_lora(visual, Lora(2, 4.0, 0.0, ("vision",)), seed=0)
    with pytest.raises(ModelError) as error:
        run(visual, processor, pictured[:2], adapter=adapter)
    assert "components" in str(error.value)


def test_a_random_layer_forgets_less_for_the_same_training():
    """The paper's control, on a model that has learned who likes which colour and who is of which colour."""
    facts = [sample(i, answer=COLOURS[i % 4]) for i in range(12)]
    question = "Which colour is this person?"
    attributes = [
        replace(fact, question=question, answer=COLOURS[i // 4 % 2]) for i, fact in enumerate(facts)
    ]
    tokenizer = sandbox.build_tokenizer([text for s in facts + attributes for text in (s.question, s.answer)])
    processor = sandbox.build_processor(tokenizer, **SHAPE)
    torch.manual_seed(0)
    shape = {"width": 32, "mlp_width": 64, "vision_layers": 2, "language_layers": 3, "heads": 2}
    trained = sandbox.build_model(tokenizer, **SHAPE, **shape)
    finetune(trained, processor, facts + attributes, steps=150, learning_rate=3e-3, batch_size=12, seed=0)
    losses = {}
    for selection in ("traced", "random"):
        model = copy.deepcopy(trained)
        values = {"questions": [question], "steps": 40, "learning_rate": 3e-3, "max_new_tokens": 2}
        result = run(model, processor, facts[:3], selection=selection, **values)
        with torch.no_grad():
            losses[selection] = [
                nll(model, Encoder(processor, samples[:3]).batch([0, 1, 2])).item()
                for samples in (facts, attributes)
            ]
        assert result.details["layers"] == ([1] if selection == "traced" else [2])
    assert losses["traced"][0] > losses["random"][0] + 0.3
    assert losses["traced"][1] < 0.2  # the anchors hold what the pictures show besides
