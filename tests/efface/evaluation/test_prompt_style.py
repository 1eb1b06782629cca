"""Questions as the model gets them: the right text with the right number of pictures."""

import pytest

from efface.errors import ModelError
from efface.evaluation.scoring.prompt_style import PromptStyle
from tests.efface.conftest import COLOURS, sample


def asked(i=0, *, pictured=True, task="choice", **changes):
    options = COLOURS if task == "choice" else None
    changes = {"part": "test", "set": "retain", "task": task, "options": options} | changes
    return sample(i, pictured=pictured, answer=COLOURS[i % 4], **changes)


def text_of(processor, row):
    return processor.tokenizer.decode(row["input_ids"][0].tolist())


@pytest.fixture(scope="module")
def speaking():
    """A processor that knows the words of the published prompts."""
    from efface import sandbox
    from efface.evaluation.scoring.question_prompts import llava_prompt
    from tests.efface.conftest import SHAPE

    kinds = [("choice", True), ("choice", False), ("cloze", True), ("generation", True)]
    corpus = [llava_prompt(asked(i, pictured=p, task=t)) for t, p in kinds for i in range(6)]
    return sandbox.build_processor(sandbox.build_tokenizer([*corpus, "Question: Correct Answer: B"]), **SHAPE)


def test_the_bare_style_is_the_question_itself(processor):
    from efface.encoding import encode_prompts

    rows = [asked(i) for i in range(3)]
    expected = encode_prompts(processor, [r.question for r in rows], [r.image for r in rows])
    for prompt, theirs in zip(PromptStyle().prompts(processor, rows), expected, strict=True):
        assert prompt["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert prompt["pixel_values"].equal(theirs["pixel_values"])
    assert all(PromptStyle().is_bare(row) for row in rows)


def test_published_words_stand_in_the_models_own_template(speaking):
    style = PromptStyle(benchmark="mllmu", style="published")
    bare = text_of(speaking, PromptStyle().prompts(speaking, [asked()])[0])
    published = text_of(speaking, style.prompts(speaking, [asked()])[0])
    assert "ONE letter" in published and "ONE letter" not in bare
    assert published.split("Which")[0] == bare.split("Which")[0]  # the template's beginning
    assert not style.is_bare(asked())
    assert PromptStyle(benchmark="clear", style="published").is_bare(asked(task="caption"))


@pytest.mark.parametrize("pictured", [True, False])
def test_whole_strings_carry_a_picture_for_every_shot(speaking, pictured):
    pool = tuple(asked(i, pictured=p, part="validation") for i in (2, 3) for p in (True, False))
    style = PromptStyle(benchmark="mllmu", style="published_llava", shots=pool)
    (row,) = style.prompts(speaking, [asked(pictured=pictured)])
    text = text_of(speaking, row)
    assert text.count("Correct Answer") == 2 and text.count("ONE letter") == 1
    if pictured:
        assert row["pixel_values"].shape[0] == 3
        image = speaking.tokenizer.convert_tokens_to_ids("<image>")
        assert int((row["input_ids"] == image).sum()) == 3 * 9  # 24 / 8 = 3 patches a side
    else:
        assert "pixel_values" not in row


def test_another_picture_token_is_refused(processor):
    class Other:
        image_token = "<|image_pad|>"

    with pytest.raises(ModelError) as error:
        PromptStyle(style="published_llava").prompts(Other(), [asked()])
    assert "image_pad" in str(error.value) and "published_llava" in str(error.value)
