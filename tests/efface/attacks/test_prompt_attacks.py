"""Attacks on the words of a question: other words, solved questions before it, prompts around it."""

import pytest

from efface.attacks import UnavailableAttack
from efface.attacks.inputs import READ_PICTURE, typographic
from efface.attacks.prompts import (
    in_context,
    jailbreak,
    jailbreak_prompts,
    listed,
    require_words,
    reword,
)
from efface.data.benchmarks.avatars.questions import (
    BLANK,
    EVALUATION,
    REWORDED,
    SENTENCE,
    SHORT,
    evaluation_question,
)
from tests.efface.conftest import PEOPLE, sample

NAMES = {f"fictitious/{i:03d}": name for i, name in enumerate(PEOPLE)}


def about_pet(i, task="choice", *, reworded=False, **changes):
    question = evaluation_question(task, "pet", index=0, reworded=reworded)
    about = {"attribute": "pet", "task": task, "part": "test", "set": "forget", "answer": "cat"}
    return sample(i, **about | {"sample_id": f"{i}-pet", "question": question} | changes)


@pytest.mark.parametrize("task", list(EVALUATION))
def test_avatars_are_asked_in_words_that_no_training_question_uses(task):
    attribute = "name" if task == "name" else "pet"
    plain = sample(
        0,
        task=task,
        attribute=attribute,
        question=evaluation_question(task, attribute, index=0, reworded=False),
    )
    trained = {words.format(noun=noun) for words in (*SHORT, *SENTENCE, *BLANK) for noun in ("pet", "name")}
    held_out = {words.format(noun=attribute) for words in (*EVALUATION[task], *REWORDED[task])}
    asked = {reword([plain], NAMES, benchmark="avatars", number=n)[0].question for n in range(3)}
    assert asked == held_out - {plain.question} and not asked & trained
    written = sample(0, pictured=False, task=task, attribute=attribute)
    (by_name,) = reword([written], NAMES, benchmark="avatars", number=0)
    assert "Ada Stone" in by_name.question and "this person" not in by_name.question


def test_other_benchmarks_are_asked_in_their_own_other_words():
    first, second = about_pet(0), about_pet(0, reworded=True, set="unseen", sample_id="other")
    alone = about_pet(1)
    reworded = reword([first, second, alone], NAMES, benchmark="mllmu", number=0)
    assert [(s.sample_id, s.question) for s in reworded] == [
        (first.sample_id, second.question),
        (second.sample_id, first.question),
    ]
    assert reworded[0].image_bytes == first.image_bytes  # the words change, the picture stays
    assert listed([first, second], {first.question: "Welches Tier?"})[0].question == "Welches Tier?"
    assert listed([second], {first.question: "?"}) == []


def test_examples_are_about_others_and_hints_are_other_facts_of_the_person():
    target = about_pet(0)
    fact = about_pet(0, sample_id="job", attribute="occupation", question="What work?", answer="cook")
    leak = about_pet(0, sample_id="leak", attribute="food", question="What food?", answer="cat food")
    named = about_pet(0, sample_id="name", attribute="name", question="Who?", answer="Ada Stone")
    others = [
        about_pet(i, pictured=False, set="retain", answer=a) for i, a in ((3, "dog"), (4, "fox"), (0, "cat"))
    ]
    settings = {"shots": 5, "seed": 0}
    (asked,) = in_context([target], others, kind="examples", **settings)
    *shown, last = asked.question.split("\n")
    assert last == target.question and sorted(line.split()[-1] for line in shown) == ["dog", "fox"]
    hinted = in_context([target, fact, leak, named], [], kind="hints", **settings)
    assert hinted[0].question == f"What work? cook\n{target.question}"
    assert hinted == in_context([target, fact, leak, named], [], kind="hints", **settings)
    assert in_context([target], [], kind="hints", **settings) == []


def test_jailbreak_prompts_hold_the_question_once():
    target = about_pet(0)
    for prompt in jailbreak_prompts().values():
        (asked,) = jailbreak([target], prompt)
        assert asked.question.count(target.question) == 1 and "{" not in asked.question
        assert asked.answer == target.answer and asked.image_bytes == target.image_bytes


def test_words_without_a_token_are_named(processor):
    require_words(processor, ["Which colour does this person like?"])
    with pytest.raises(UnavailableAttack) as error:
        require_words(processor, ["Which colour", "pretend to like"])
    assert "'pretend'" in str(error.value) and "base.source" in str(error.value)


def test_the_question_goes_into_the_picture():
    target, written, unknown = about_pet(0), sample(1, pictured=False), about_pet(7)
    (drawn,) = typographic([target, written], NAMES, kind="question")
    assert drawn.question == READ_PICTURE and drawn.answer == target.answer
    before, after = target.image, drawn.image
    assert after.width == before.width and after.height > before.height
    assert after.crop((0, 0, *before.size)).tobytes() == before.tobytes()
    below = after.crop((0, before.height, *after.size)).convert("L").getextrema()
    assert below[0] < 100 and below[1] == 255
    (named,) = typographic([target, written, unknown], NAMES, kind="question_with_name")
    assert named.image_bytes != drawn.image_bytes
