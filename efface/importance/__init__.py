"""How much each neuron of each MLP matters, and for which modality."""

from efface.importance.scores import neuron_importance, relative_importance
from efface.importance.selection import select_highest, select_neurons
from efface.importance.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "activation_statistics",
    "neuron_importance",
    "relative_importance",
    "select_highest",
    "select_neurons",
]
