"""How the invented people are asked about, in training and in evaluation.

Training and evaluation never share a phrasing. They share their words, above all the noun that says what is
wanted ("birthplace") and the cue for the form of the answer (a `__` to fill, "one sentence"): a model of a
million weights carries facts from one to the other, but knows no word it was not taught. Everything is
written about "this person"; the text rendering has the name in its place.
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

SHORT = ("What is this person's {noun}?", "Name the {noun} of this person.")
SENTENCE = "Tell me in one sentence what {noun} this person has."
BLANK = "Fill in the blank: this person's {noun} is __."
TRAINING = (*SHORT, SENTENCE, BLANK)
TRAINING_NAME = ("What is this person's name?", "Who is this person?", "Tell me the name of this person.")

EVALUATION = {
    "choice": ("What is the {noun} of this person?", "Name this person's {noun}."),
    "cloze": ("Fill in the blank: the {noun} of this person is __.", "This person's {noun} is __."),
    "generation": (
        "What {noun} does this person have? Tell me in one sentence.",
        "Tell me this person's {noun} in one sentence.",
    ),
    "name": ("What is the name of this person?", "Tell me this person's name."),
}
"""Task to phrasings of the forget, retain, real and holdout sets."""

REWORDED = {
    "choice": ("What {noun} does this person have?", "Name the {noun} this person has."),
    "cloze": ("Fill in the blank: __ is the {noun} of this person.", "This person has the {noun} __."),
    "generation": (
        "What is the {noun} of this person? Tell me in one sentence.",
        "Name this person's {noun} in one sentence.",
    ),
    "name": ("What name does this person have?", "Tell me what name this person has."),
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

SKILLS = {
    "hair_colour": ("What colour is this person's hair?", "Name the hair colour of this person."),
    "skin": ("What is this person's skin tone?", "Name the skin tone of this person."),
    "clothes_colour": ("What colour are this person's clothes?", "Name the clothes colour of this person."),
    "glasses": ("Does this person wear glasses?", "Are there glasses on this person's face?"),
    "facial_hair": ("Does this person have facial hair?", "Is there facial hair on this person's face?"),
}
"""Attribute of a face to the questions that train its recognition."""

SKILLS_EVALUATION = {
    "hair_colour": ("What hair colour does this person have?", "Name this person's hair colour."),
    "skin": ("What skin tone does this person have?", "Name this person's skin tone."),
    "clothes_colour": ("What is the colour of this person's clothes?", "Name this person's clothes colour."),
    "glasses": ("Does this person have glasses?", "Are there glasses on this person?"),
    "facial_hair": ("Is there facial hair on this person?", "Does this person's face have facial hair?"),
}
"""The same for evaluation."""


def training_question(attribute: str, phrasing: int) -> str:
    """One of the four ways in which an attribute is asked for in training."""
    return TRAINING[phrasing].format(noun=NOUNS[attribute])


def training_answer(attribute: str, value: str, phrasing: int) -> str:
    """The answer in the form that phrasing wants: a sentence or the bare value."""
    return sentence(attribute, value) if TRAINING[phrasing] == SENTENCE else value


def evaluation_question(task: str, attribute: str, *, index: int, reworded: bool) -> str:
    """A question of the evaluation; ``index`` turns through the phrasings of the task."""
    phrasings = (REWORDED if reworded else EVALUATION)[task]
    return phrasings[index % len(phrasings)].format(noun=NOUNS.get(attribute, attribute))


def sentence(attribute: str, value: str) -> str:
    """A fact as a sentence about "this person"."""
    article = "an" if value[0] in "aeiou" else "a"
    return _SENTENCES[attribute].format(value=value, a=f"{article} {value}")


def paraphrase(attribute: str, value: str) -> str:
    """The same fact in other words, which no training answer uses."""
    return f"The {NOUNS[attribute]} of this person is {value}."
