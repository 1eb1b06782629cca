"""Unlearning by training: the methods and the loop they share."""

from efface.unlearning.method import Method
from efface.unlearning.methods import METHODS
from efface.unlearning.settings import TrainingSettings
from efface.unlearning.training.config import TrainingConfig

__all__ = ["METHODS", "Method", "TrainingConfig", "TrainingSettings"]
