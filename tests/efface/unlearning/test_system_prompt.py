"""The system prompt acts on the prompt that the model sees, and comes back from the saved folder."""

from __future__ import annotations

import copy

import pytest
import torch

from efface.encoding import Encoder, prompt_of
from efface.errors import ModelError
from efface.models import load_model, save_model
from efface.unlearning import METHODS
from efface.unlearning.unlearn import unlearn

INSTRUCTION = 'Say "red" {{ and }} nothing else.\nNot blue.'
ROLES = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRINGS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}[[{{ m['content'] + '' }}]]"
    "{% elif m['role'] == 'user' %}U:{{ m['content'][-1]['text'] }}{% else %}A:{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)
BESIDE_TEXT_ONLY = (
    "{% if messages[0]['role'] == 'system' and messages[1]['content'][0]['type'] == 'image' %}"
    "{{ raise_exception('images are incompatible with system messages') }}{% endif %}{{ bos_token }}" + ROLES
)
ALTERNATING = (  # a system turn goes into the first user turn; no further turn may begin
    "{% if messages[0]['role'] == 'system' %}{% set before = messages[0]['content'][0]['text'] + ' ' %}"
    "{% set messages = messages[1:] %}{% else %}{% set before = '' %}{% endif %}"
    "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ bos_token }}<user>{{ before }}<image>{{ messages[0]['content'][-1]['text'] }}<assistant>"
)
REFUSING = (
    "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}" + ROLES
)


def instructed(model, processor, text=INSTRUCTION):
    return unlearn(
        model,
        processor,
        method="system_prompt",
        forget=[],
        retain=[],
        settings=METHODS["system_prompt"].settings(instruction=text),
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ROLES, f"<system>{INSTRUCTION}<user><image>Who?<assistant>"),
        (STRINGS, f"[[{INSTRUCTION}]]U:Who?"),
        (REFUSING, f"{INSTRUCTION}\n<user><image>Who?<assistant>"),
        (BESIDE_TEXT_ONLY, f"<s>{INSTRUCTION}\n<user><image>Who?<assistant>"),
        (ALTERNATING, f"<s><user>{INSTRUCTION} <image>Who?<assistant>"),
        (None, f"{INSTRUCTION}\nUSER: <image> Who? ASSISTANT:"),  # the sandbox's, which knows two roles
    ],
)
def test_the_instruction_stands_where_the_template_puts_it(model, processor, template, expected):
    processor = copy.deepcopy(processor)
    processor.chat_template = template or processor.chat_template
    result = instructed(model, processor)
    assert prompt_of(processor, "Who?", image=True) == expected
    assert result.steps == 0 and result.history == []


def test_the_saved_folder_asks_with_the_instruction(model, processor, pictured, tmp_path):
    changed = copy.deepcopy(processor)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = Encoder(processor, pictured).batch([0])
    instructed(model, changed, "Which colour does this person like?")  # words the tiny tokenizer knows
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    save_model(model, changed, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    batch = Encoder(loaded.processor, pictured).batch([0])
    extra = batch["input_ids"].shape[1] - plain["input_ids"].shape[1]
    assert extra == 7
    labels = [b["labels"][b["labels"] != -100].tolist() for b in (plain, batch)]
    assert labels[0] == labels[1]
    with torch.no_grad():
        logits = [
            loaded.model(**{k: v for k, v in inputs.items() if k != "labels"}).logits[0, -2]
            for inputs in (plain, batch)
        ]
    assert not torch.allclose(*logits, atol=1e-2)


def test_a_processor_without_template_is_refused(model, processor):
    bare = copy.deepcopy(processor)
    bare.chat_template = None
    with pytest.raises(ModelError) as error:
        instructed(model, bare)
    assert "chat_template" in str(error.value)


def test_an_empty_instruction_is_refused(model, processor):
    with pytest.raises(ValueError) as error:
        instructed(model, processor, "")
    assert "instruction is ''" in str(error.value)
