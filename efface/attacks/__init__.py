"""Attacks that try to bring back what a model was made to forget: is it gone, or only hidden?"""

from typing import Literal

from efface.errors import DataError

NO_ATTACK = "none"
"""Attack, and variant, of the model as it is."""
Context = Literal["examples", "hints"]
CrossModal = Literal["name_in_question", "name_in_picture"]
ImageShift = Literal["crop", "noise", "grey", "rotate"]
Typographic = Literal["question", "question_with_name"]


class UnavailableAttack(DataError):
    """An attack lacks what it needs, with what to do about it; the others can go on."""
