"""Unlearning by training: the methods and the one loop they share."""

from efface.unlearning.method import METHODS, Method
from efface.unlearning.unlearn import UnlearningResult, unlearn

__all__ = ["METHODS", "Method", "UnlearningResult", "unlearn"]
