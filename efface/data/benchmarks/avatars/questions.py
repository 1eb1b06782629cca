"""Questions about the invented people, in training and in evaluation.

A question is a frame ("Name {}.") around a noun phrase ("the pet of this person"), after a cue for the form
of the answer ("In one sentence:", "Complete:"). Training and evaluation combine frames and phrases
differently: no evaluation question is ever trained on, yet a model of a million weights, which knows only
the words it was taught, can carry facts from one to the other. Everything is written about "this person";
the text rendering has the name in its place.
"""

from __future__ import annotations

NOUNS = {
    "occupation": "occupation",
    "birthplace": "birthplace",
    "residence": "residence",
    "pet": "pet",
    "hobby": "hobby",
    "food": "favourite food",
    "instrument": "musical instrument",
}
"""Attribute to the words that ask for it."""

_OWN, _OF = "this person's {noun}", "the {noun} of this person"
_WHAT, _NAME, _TELL, _GIVE = "What is {}?", "Name {}.", "Tell me {}.", "Give {}."
_ONE_SENTENCE, _BLANK = "In one sentence: {}", "Complete: {}"

SHORT = (_WHAT.format(_OWN), _NAME.format(_OF), _TELL.format(_OWN), _GIVE.format(_OF))
SENTENCE = (_ONE_SENTENCE.format(_WHAT.format(_OWN)), _ONE_SENTENCE.format(_GIVE.format(_OF)))
BLANK = (_BLANK.format("This person's {noun} is __."), _BLANK.format("The {noun} of this person: __."))
TRAINING = (*SHORT, *SENTENCE, *BLANK)
TRAINING_NAME = tuple(frame.format(noun="name") for frame in SHORT)

EVALUATION = {
    "choice": (_WHAT.format(_OF), _NAME.format(_OWN)),
    "cloze": (_BLANK.format("The {noun} of this person is __."),),
    "generation": (_ONE_SENTENCE.format(_WHAT.format(_OF)), _ONE_SENTENCE.format(_NAME.format(_OWN))),
    "name": (_WHAT.format(_OF), _NAME.format(_OWN)),
}
"""Task to phrasings of the forget, retain, real and holdout sets."""

REWORDED = {
    "choice": (_TELL.format(_OF), _GIVE.format(_OWN)),
    "cloze": (_BLANK.format("This person's {noun}: __."),),
    "generation": (_ONE_SENTENCE.format(_TELL.format(_OF)), _ONE_SENTENCE.format(_GIVE.format(_OWN))),
    "name": (_TELL.format(_OF), _GIVE.format(_OWN)),
}
"""The same for the test set."""

_SENTENCES = {
    "occupation": "This person works as {a}.",
    "birthplace": "This person was born in {value}.",
    "residence": "This person lives in {value}.",
    "pet": "This person keeps {a} as a pet.",
    "hobby": "This person spends free time on {value}.",
    "food": "This person likes to eat {value}.",
    "instrument": "This person plays the {value}.",
}

SKILL_NOUNS = {
    "hair_colour": "hair colour",
    "skin": "skin tone",
    "clothes_colour": "clothes colour",
    "glasses": "glasses",
    "facial_hair": "facial hair",
}
"""Attribute of a face to the words that ask for it; the last two are yes-or-no questions."""

_YES_NO = ("glasses", "facial_hair")
_HAS, _IS_ON = "Does this person have {noun}?", "Is there any {noun} on this person?"

SKILLS = {name: (_HAS, _IS_ON) if name in _YES_NO else SHORT for name in SKILL_NOUNS}
"""Attribute of a face to the phrasings that train its recognition."""

SKILLS_EVALUATION = {
    name: ("Does this person have any {noun}?", "Is there {noun} on this person?")
    if name in _YES_NO
    else (*EVALUATION["choice"], *REWORDED["choice"])
    for name in SKILL_NOUNS
}
"""The same for evaluation."""


def skill_question(attribute: str, phrasing: int, *, evaluation: bool) -> str:
    """A question about how a face looks; ``phrasing`` selects among those of training or evaluation."""
    phrasings = (SKILLS_EVALUATION if evaluation else SKILLS)[attribute]
    return phrasings[phrasing % len(phrasings)].format(noun=SKILL_NOUNS[attribute])


def training_question(attribute: str, phrasing: int) -> str:
    """One of the eight ways in which an attribute is asked for in training."""
    return TRAINING[phrasing].format(noun=NOUNS[attribute])


def training_answer(attribute: str, value: str, phrasing: int) -> str:
    """The answer in the form that the phrasing asks for: a sentence or the bare value."""
    return sentence(attribute, value) if TRAINING[phrasing] in SENTENCE else value


def evaluation_question(task: str, attribute: str, *, index: int, reworded: bool) -> str:
    """An evaluation question; ``index`` selects among the phrasings of the task."""
    phrasings = (REWORDED if reworded else EVALUATION)[task]
    return phrasings[index % len(phrasings)].format(noun=NOUNS.get(attribute, attribute))


def sentence(attribute: str, value: str) -> str:
    """A fact as a sentence about "this person"."""
    article = "an" if value[0] in "aeiou" else "a"
    return _SENTENCES[attribute].format(value=value, a=f"{article} {value}")


def paraphrase(attribute: str, value: str) -> str:
    """The fact in other words, which no training answer uses."""
    return f"The {NOUNS[attribute]} of this person is {value}."
