"""Attacks that try to bring back what a model was made to forget: is it gone, or only hidden?"""

from efface.errors import DataError


class UnavailableAttack(DataError):
    """An attack lacks what it needs, with what to do about it; the others can go on."""
