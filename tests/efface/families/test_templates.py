"""Chat templates of many families with a tokenizer of bytes: what is labelled, what is frozen."""

from __future__ import annotations

import datetime
import resource
import signal

import pytest

from efface import sandbox
from efface.encoding import check_template, encode, prompt_of
from efface.errors import DataError, ModelError
from efface.models import chat_template
from efface.models.chat_template import check_rendering, freeze_date, set_arguments
from tests.efface.conftest import SHAPE, sample
from tests.models import google, idefics, internvl_mllama, llava, qwen

_PART = "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
_PARTS = "{% for p in m['content'] %}" + _PART + "{% endfor %}"
_STRICT = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + _PARTS + "{% endif %}"
# Written in the shape of the families' published templates.
TEMPLATES = {
    "sandbox": sandbox.CHAT_TEMPLATE,
    "llava": llava.DIALOGUE,
    "llava_onevision": llava.CHATML,
    "qwen2_vl": qwen.TEMPLATE,
    "idefics2": idefics.TEMPLATE,
    "gemma3": google.GEMMA3_TEMPLATE,
    "internvl": internvl_mllama.INTERNVL_TEMPLATE,
    "mllama": internvl_mllama.MLLAMA_TEMPLATE,
    "mistral3": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]"
    + _PARTS
    + "[/INST]{% else %}"
    + _STRICT
    + "{{ eos_token }}{% endif %}{% endfor %}",
    "aya_vision": "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m['role'] == 'user' %}<|USER_TOKEN|>{% else %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
    + _PARTS
    + "{% if m['role'] == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    "gemma4": "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m['role'] == 'assistant' else "
    "m['role'] }}\n"
    + _PARTS
    + "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}",
    "plain words for the assistant": "{% for m in messages %}{% if m['role'] == 'user' %}Q: "
    + _PARTS
    + "\nA:{% else %} {{ m['content'] + eos_token }}{% endif %}{% endfor %}",
}
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}" + _PARTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
DATED = (
    "{%- macro today() -%}{{ strftime_now('%d %b %Y') }}{%- endmacro -%}"
    "{% set form = '%Y-%m-%d' %}{% for m in messages %}[{{ today() }} {{ strftime_now(form) }}]"
    + _PARTS
    + "{% endfor %}{% if strftime_now is defined %}{{ strftime_now('%A, %-d %B, %H:%M') }}{% endif %}"
)


@pytest.fixture
def processor():
    """LLaVA's processor with one token per byte, so that decoding gives every character back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<image>"], **tokens
    )
    return sandbox.build_processor(tokenizer, **SHAPE)


def written_behind_the_prompt(processor, example):
    """What the template writes for an assistant turn behind its own prompt."""
    content = [{"type": "image"}] * len(example.images) + [{"type": "text", "text": example.question}]
    user = {"role": "user", "content": content}
    texts = []
    for answer in ([{"type": "text", "text": example.answer}], example.answer):
        try:
            texts.append(processor.apply_chat_template([user, {"role": "assistant", "content": answer}]))
        except TypeError:  # the template joins plain words
            continue
    prompt = processor.apply_chat_template([user], add_generation_prompt=True)
    text = next(text for text in texts if text.startswith(prompt))
    return text[len(prompt) :].rstrip()


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("pictured", [True, False])
def test_the_labels_decode_to_what_the_template_writes(processor, family, pictured):
    processor.chat_template = TEMPLATES[family].replace("<IMG_CONTEXT>", "<image>")
    for old in ("<start_of_image>", "<|vision_start|><|image_pad|><|vision_end|>", "<|image|>"):
        processor.chat_template = processor.chat_template.replace(old, "<image>")
    check_template(processor)
    for example in (sample(i, pictured=pictured, answer=answer) for i, answer in enumerate(ANSWERS)):
        (row,) = encode(processor, [example])
        labelled = processor.tokenizer.decode(row["labels"][row["labels"] != -100])
        written = written_behind_the_prompt(processor, example)
        if written.endswith(example.answer):  # LLaVA-1.5's template writes no end token
            written += "</s>"
        assert labelled == written
        assert example.answer in labelled and len(labelled) > len(example.answer)


ANSWERS = ["red", "a red, and (green) one.", "Ünïcode: 1\u202f000 €", "two\n\nlines"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: " + _PARTS + "\n{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + _PARTS + "<|im_end|>\n{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
        + _STRICT
        + "{{ eos_token }}{% endfor %}",
    ],
)
def test_a_template_without_a_generation_prompt_is_refused(processor, template):
    """Trained to begin an answer by its own role, a model would seem to have forgotten everything."""
    processor.chat_template = template
    with pytest.raises(DataError) as error:
        check_template(processor)
    assert "add_generation_prompt" in str(error.value) and "ssistant" in str(error.value).lower()


def test_the_sandbox_writes_answers_as_ever(processor):
    example = sample(0, answer="red and green")
    (row,) = encode(processor, [example])
    assert processor.tokenizer.decode(row["labels"][row["labels"] != -100]) == " red and green</s>"


def test_an_answer_never_stands_inside_the_thinking(processor):
    processor.chat_template = THINKING
    (row,) = encode(processor, [sample(0, pictured=False, answer="red")])
    assert processor.tokenizer.decode(row["labels"][row["labels"] != -100]) == "\n</think>\n\nred<|im_end|>"
    set_arguments(processor, {"enable_thinking": False})
    assert prompt_of(processor, "Which?", image=False).endswith("<think>\n\n</think>\n\n")
    (row,) = encode(processor, [sample(0, pictured=False, answer="red")])
    assert processor.tokenizer.decode(row["labels"][row["labels"] != -100]) == "red<|im_end|>"
    processor.chat_template = THINKING.replace(
        "<think>\n\n</think>\n\n{% endif %}" + _PARTS, "{% endif %}" + _PARTS
    )
    with pytest.raises(DataError) as error:
        encode(processor, [sample(0, pictured=False, answer="red")])
    assert "base.template_arguments" in str(error.value) and "enable_thinking" in str(error.value)


def test_arguments_of_every_kind_are_written_into_the_template(processor):
    processor.chat_template = (
        "{% macro inner() %}{{ level }}{% endmacro %}{{ inner() }} {{ words }} {{ share }} {{ flag }}"
    )
    arguments = {"level": 3, "words": 'it\'s "so"', "share": 0.5, "flag": True}
    set_arguments(processor, arguments)
    turns = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    for words in ({}, {"level": 4}):
        assert processor.apply_chat_template(turns, **words) == '3 it\'s "so" 0.5 True'
    with pytest.raises(ModelError) as error:
        set_arguments(processor, {"enable_thinking": False})
    assert "'enable_thinking'" in str(error.value)


def test_a_date_in_the_template_is_the_same_every_day(processor, monkeypatch):
    class Clock(datetime.datetime):
        day = 1

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2031, 5, cls.day, 8, 30)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    processor.chat_template = DATED

    def prompts():
        days = []
        for Clock.day in (3, 4):
            days.append(prompt_of(processor, "Who?", image=False))
        return days

    first, second = prompts()
    assert first != second and "03 May 2031" in first
    freeze_date(processor)
    frozen = processor.chat_template
    first, second = prompts()
    assert first == second == "[01 Jan 2025 2025-01-01]Who?Wednesday, 1 January, 12:00"
    freeze_date(processor)
    assert processor.chat_template == frozen
    processor.chat_template = TEMPLATES["gemma3"]
    freeze_date(processor)
    assert processor.chat_template == TEMPLATES["gemma3"]
    stands_for = datetime.datetime(2025, 1, 1, 12)
    assert all(stands_for.strftime(code) == value for code, value in chat_template._DATE.items())


@pytest.mark.parametrize(
    "loop",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{% if messages[-1]['role'] == 'assistant' %}{{ 'x' * 10**11 }}{% endif %}",
        "{% macro again(n) %}{{ again(n) }}{{ again(n) }}{% endmacro %}{{ again(1) }}",
    ],
)
def test_a_template_that_takes_too_much_is_refused(processor, monkeypatch, loop):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    processor.chat_template = loop + processor.chat_template
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ModelError):
        check_rendering(processor)
    assert signal.getsignal(signal.SIGALRM) == handler
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    processor.chat_template = sandbox.CHAT_TEMPLATE
    check_rendering(processor)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("range(10**6)", "OverflowError"),
        ("1 / 0", "ZeroDivisionError"),
        ("'x' + 1", "TypeError"),
        ("'{'.format()", "ValueError"),
        ("''.__class__.mro()", "SecurityError"),
        ("raise_exception('no pictures')", "no pictures"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_error(processor, expression, error):
    processor.chat_template = "{{ " + expression + " }}" + processor.chat_template
    check_rendering(processor)  # of time and memory alone
    with pytest.raises(DataError) as refusal:
        check_template(processor)
    assert error in str(refusal.value) and "base.chat_template" in str(refusal.value)
